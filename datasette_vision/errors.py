"""Every error that this package raises on purpose.

::

    VisionError                  500  1
    ├── ConfigError              500  2   the configuration has an unknown key or a bad value
    ├── InvalidInput             400  2   the caller's input cannot be used
    │   ├── InvalidArgument      400  2     wrong type or out of range
    │   ├── Unreadable           400  2     a file or a value that cannot be read at all
    │   ├── InvalidImage         400  2     not an image, truncated, too large …
    │   ├── InvalidText          400  2     too long
    │   ├── InvalidVector        400  2     not an embedding
    │   ├── DimensionMismatch    400  2     embeddings of two models in one calculation
    │   └── InvalidLabels        400  2     labels for zero-shot classification are malformed
    ├── UnknownModel             404  4   no installed model has this name
    ├── NotEmbedded              404  13  a table has no embeddings, or not from this model
    ├── WrongTask                400  2   the model exists but does another task
    ├── NotPermitted             403  15  the actor may not run a model
    ├── ModelCorrupt             500  5   a file of an installed model is missing or altered
    ├── InstallFailed            500  8   a model could not be installed
    │   ├── SourceNotFound       404  9     there is no such repository, revision or file
    │   └── DownloadFailed       503  10    the hub could not be reached, refused, or sent something else
    ├── ExtraMissing             500  11  a package from one of our extras is missing
    ├── StorageFailed            503  12  a file or a folder could not be listed, read or written
    ├── Busy                     503  6   the queue is full, or the work took too long
    │   └── DeadlineExceeded     503  14    the time for a query or a request is up
    └── EngineFailure            500  7   the inference engine itself failed

The two numbers are the HTTP status and the CLI exit code. Adapters use only these to translate an error.
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
    """The caller's input cannot be used."""

    http_status = 400
    exit_code = 2


class InvalidArgument(InvalidInput):
    """An argument is of the wrong type or out of range."""


class Unreadable(InvalidInput):
    """A file or a value of a table cannot be read: it is missing, not allowed, or has another type."""


class InvalidImage(InvalidInput):
    """These bytes are not a readable image."""


class InvalidText(InvalidInput):
    """This text cannot be embedded."""


class InvalidVector(InvalidInput):
    """These bytes are not an embedding, or are one of length zero."""


class DimensionMismatch(InvalidInput):
    """One calculation got embeddings of different sizes, so from different models."""


class InvalidLabels(InvalidInput):
    """The labels given for zero-shot classification are malformed."""


class UnknownModel(VisionError):
    """No installed model has this name."""

    http_status = 404
    exit_code = 4


class NotEmbedded(VisionError):
    """The table does not exist, or has no embeddings from this model or of this column."""

    http_status = 404
    exit_code = 13


class WrongTask(VisionError):
    """The model exists, but does another task."""

    http_status = 400
    exit_code = 2


class NotPermitted(VisionError):
    """The actor may not run a model."""

    http_status = 403
    exit_code = 15


class ModelCorrupt(VisionError):
    """A file of an installed model is missing, altered or unreadable. The message names the file."""

    http_status = 500
    exit_code = 5


class InstallFailed(VisionError):
    """A model could not be installed. Nothing is left of it but downloads to resume."""

    http_status = 500
    exit_code = 8


class SourceNotFound(InstallFailed):
    """There is no such repository, revision, folder or file to install from."""

    http_status = 404
    exit_code = 9


class DownloadFailed(InstallFailed):
    """The hub could not be reached, refused access, or sent other bytes than announced."""

    http_status = 503
    exit_code = 10


class ExtraMissing(VisionError):
    """A package from one of our extras is missing. The message says which."""

    http_status = 500
    exit_code = 11


class StorageFailed(VisionError):
    """A file or a folder, on this machine or in an object store, could not be listed, read or written."""

    http_status = 503
    exit_code = 12


class Busy(VisionError):
    """The queue is full, or no result came in time. Try again."""

    http_status = 503
    exit_code = 6


class DeadlineExceeded(Busy):
    """The time for a query or a request is up. Results computed until then stay in the cache."""

    http_status = 503
    exit_code = 14


class EngineFailure(VisionError):
    """The inference engine failed on an input that had passed every check."""

    http_status = 500
    exit_code = 7
