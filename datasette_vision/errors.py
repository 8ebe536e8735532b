"""Every error that this package raises on purpose.

::

    VisionError                  500  1
    ├── ConfigError              500  2   the configuration has an unknown key or a bad value
    ├── InvalidInput             400  2   what the caller sent cannot be used
    │   ├── InvalidArgument      400  2     wrong type or out of range
    │   ├── Unreadable           400  2     a file or a value that cannot be read at all
    │   ├── InvalidImage         400  2     not an image, truncated, too large …
    │   ├── InvalidText          400  2     too long
    │   ├── InvalidVector        400  2     not an embedding
    │   ├── DimensionMismatch    400  2     embeddings of two models in one calculation
    │   └── InvalidLabels        400  2     labels for zero-shot classification are malformed
    ├── UnknownModel             404  4   no installed model has this name
    ├── NotEmbedded              404  13  a table has no embeddings, or not by this model
    ├── WrongTask                400  2   the model exists but does another kind of work
    ├── NotPermitted             403  15  whoever asks may not have a model compute
    ├── ModelCorrupt             500  5   a file of an installed model is missing or altered
    ├── InstallFailed            500  8   a model could not be installed
    │   ├── SourceNotFound       404  9     there is no such repository, revision or file
    │   └── DownloadFailed       503  10    the hub could not be reached, refused, or sent something else
    ├── ExtraMissing             500  11  a package is needed that comes with an extra of ours
    ├── StorageFailed            503  12  a file or a folder could not be listed, read or written
    ├── Busy                     503  6   the queue is full, or the work took too long
    │   └── DeadlineExceeded     503  14    the time that a query or a request has is up
    └── EngineFailure            500  7   the inference engine itself failed

The two numbers are the HTTP status and the CLI exit code: each adapter translates by them and by nothing else.
"""

from __future__ import annotations


class VisionError(Exception):
    """Base of the tree. Its message is written for the person who made the request."""

    http_status = 500
    exit_code = 1


class ConfigError(VisionError):
    """The plugin's configuration has an unknown key or a value out of range."""

    http_status = 500
    exit_code = 2


class InvalidInput(VisionError):
    """What the caller sent cannot be used."""

    http_status = 400
    exit_code = 2


class InvalidArgument(InvalidInput):
    """An argument is of the wrong type or out of range."""


class Unreadable(InvalidInput):
    """A file, or a value of a table, cannot be read: it is not there, not allowed, or of another type."""


class InvalidImage(InvalidInput):
    """These bytes are not an image that can be read."""


class InvalidText(InvalidInput):
    """This text cannot be embedded."""


class InvalidVector(InvalidInput):
    """These bytes are not an embedding, or one without a direction."""


class DimensionMismatch(InvalidInput):
    """Embeddings of different sizes, so of different models, were put into one calculation."""


class InvalidLabels(InvalidInput):
    """The labels given for zero-shot classification are malformed."""


class UnknownModel(VisionError):
    """No installed model has this name."""

    http_status = 404
    exit_code = 4


class NotEmbedded(VisionError):
    """There is no such table, it has no embeddings, or none by this model or of this column."""

    http_status = 404
    exit_code = 13


class WrongTask(VisionError):
    """The model exists, but does another kind of work than was asked of it."""

    http_status = 400
    exit_code = 2


class NotPermitted(VisionError):
    """Whoever asks may not have a model compute."""

    http_status = 403
    exit_code = 15


class ModelCorrupt(VisionError):
    """A file of an installed model is missing, altered or unreadable. The message names the file."""

    http_status = 500
    exit_code = 5


class InstallFailed(VisionError):
    """A model could not be installed. Nothing of it is left but downloads to resume."""

    http_status = 500
    exit_code = 8


class SourceNotFound(InstallFailed):
    """There is no repository, revision, folder or file of this name to install from."""

    http_status = 404
    exit_code = 9


class DownloadFailed(InstallFailed):
    """The hub could not be reached, refused access, or sent other bytes than it announced."""

    http_status = 503
    exit_code = 10


class ExtraMissing(VisionError):
    """A package is needed that comes with an extra of ours. The message says which."""

    http_status = 500
    exit_code = 11


class StorageFailed(VisionError):
    """A file or a folder, of this machine or of an object store, could not be listed, read or written."""

    http_status = 503
    exit_code = 12


class Busy(VisionError):
    """The queue is full, or no answer came in time. Try again."""

    http_status = 503
    exit_code = 6


class DeadlineExceeded(Busy):
    """The time that a query or a request has is up. What was computed until then is kept in the cache."""

    http_status = 503
    exit_code = 14


class EngineFailure(VisionError):
    """The inference engine failed on an input that had passed every check."""

    http_status = 500
    exit_code = 7
