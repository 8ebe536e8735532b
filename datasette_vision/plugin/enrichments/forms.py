"""The forms of the enrichments. Imported only with datasette-enrichments, which brings wtforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wtforms import BooleanField, Form, SelectField, StringField, TextAreaField
from wtforms.validators import DataRequired, ValidationError

from datasette_vision.errors import InvalidLabels
from datasette_vision.plugin.http.parameters import labels_of_text
from datasette_vision.vectors.zero_shot import parse_labels

SHOWN_SCORES = 5
# Values and their display text: how pairs of them are written differs between versions of wtforms.
LABEL, SCORES = "the best label", f"the best {SHOWN_SCORES} with their scores, as JSON"


class Choices:
    """The choices: the columns, the one that holds images, and the models, the default one first."""

    def __init__(self, columns: Sequence[str], key: Sequence[str], pictures: str | None, models: Sequence[str]) -> None:
        self.columns = list(columns)
        self.key = list(key)
        self.pictures = pictures
        self.models = list(models)


def embed_form(choices: Choices) -> type[Form]:
    """Return the form of the enrichment that embeds."""

    class EmbedForm(Form):
        column = _column(choices, "Images or texts.")
        model = _model(choices)

    return EmbedForm


def classify_form(choices: Choices) -> type[Form]:
    """Return the form of the enrichment that classifies."""

    class ClassifyForm(Form):
        column = _column(choices, "Images.")
        model = _model(choices)
        output = _output(choices)
        what = SelectField("Write to", choices=[LABEL, SCORES])
        overwrite = _overwrite()

    return ClassifyForm


def zero_shot_form(choices: Choices, max_labels: int) -> type[Form]:
    """Return the form of the enrichment that chooses among labels."""

    def check_labels(form: Form, field: Any) -> None:
        field.data = labels_of_text(field.data)
        try:
            parse_labels(field.data, max_labels)
        except InvalidLabels as error:
            raise ValidationError(str(error)) from None

    class ZeroShotForm(Form):
        column = _column(choices, "Images.")
        labels = TextAreaField(
            "Labels",
            validators=[DataRequired("Enter some labels, one per line."), check_labels],
            description="One per line, or separated by commas; or JSON, as for vision_zero_shot().",
        )
        model = _model(choices)
        output = _output(choices)
        what = SelectField("Write to", choices=[LABEL, SCORES])
        overwrite = _overwrite()

    return ZeroShotForm


def _column(choices: Choices, description: str) -> Any:
    return SelectField("Column", choices=choices.columns, default=choices.pictures, description=description)


def _model(choices: Choices) -> Any:
    return SelectField("Model", choices=choices.models)


def _overwrite() -> Any:
    return BooleanField("Overwrite", description="If the column exists already, replace its contents.")


def _output(choices: Choices) -> Any:
    taken = {name.lower() for name in choices.columns}
    key = {name.lower() for name in choices.key}

    def check(form: Any, field: Any) -> None:
        name = field.data = field.data.strip()
        if not name:
            raise ValidationError("Give the column a name.")
        if name.lower() in key or name.lower() == str(form.column.data).lower():
            raise ValidationError(f"{name} is the key, or the column that is read: choose another column.")
        if name.lower() in taken and not form.overwrite.data:
            raise ValidationError(f"There is already a column {name}: choose another, or tick Overwrite.")

    return StringField(
        "Result",
        validators=[DataRequired("Give the column a name."), check],
        default="vision_label",
        description="The column for the result. It is added if necessary.",
    )
