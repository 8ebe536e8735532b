"""Enrichments for datasette-enrichments, on Datasette 1.0: embed, classify, choose among labels.

Imported only if that plugin is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.parse
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasette_enrichments import Enrichment
from datasette_enrichments.utils import pks_for_rows

from datasette_vision.errors import Busy, StorageFailed, VisionError
from datasette_vision.models.tasks import embeds
from datasette_vision.plugin.enrichments import forms
from datasette_vision.plugin.enrichments.batches import Batch, Failed, image_column
from datasette_vision.plugin.http.parameters import labels_of_text
from datasette_vision.plugin.queries import execution
from datasette_vision.plugin.server import permissions
from datasette_vision.plugin.server.compatibility import open_reader
from datasette_vision.plugin.server.datasette_writer import DatasetteWriter
from datasette_vision.plugin.server.state import state_of
from datasette_vision.tables.rows import SourceTable
from datasette_vision.util.sql_names import quote

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

    from datasette_vision.engine.vision import Vision

FormValues = dict[str, Any]


class VisionEnrichment(Enrichment):
    """The base of the three enrichments. A failed row is recorded as that plugin expects, and does not stop the
    others.
    """

    batch_size = 50

    @abstractmethod
    def run(self, batch: Batch, vision: Vision, config: FormValues) -> Failed:
        """Process a batch, on a thread."""

    @abstractmethod
    def form(self, choices: forms.Choices, vision: Vision) -> Any:
        """Return the class of the form."""

    def suits(self, model: dict[str, Any]) -> bool:
        """Say whether a model, as described by Vision.models(), can be used: one that makes embeddings."""
        return embeds(model["task"])

    async def get_config_form(self, datasette: Datasette, db: Database, table: str) -> Any:
        """Return the form, with the table's columns and the installed models to choose from. Raises Forbidden."""
        await _ensure_may_infer(datasette)

        def make() -> Any:
            vision = state_of(datasette).vision.get()
            with contextlib.closing(open_reader(db)) as connection:
                columns, pictures = image_column(connection, table)
                source = SourceTable(connection, table)
                key = source.key + source.own_key
            suiting = [model for model in vision.models() if "error" not in model and self.suits(model)]
            names = [str(model["name"]) for model in sorted(suiting, key=lambda model: not model["default"])]
            return self.form(forms.Choices(columns, key, pictures, names), vision)

        return await asyncio.to_thread(make)

    async def initialize(self, datasette: Datasette, db: Database, table: str, config: FormValues) -> None:
        """Add the column for the result, if necessary."""
        output = config.get("output")
        if output and output.lower() not in {name.lower() for name in await db.table_columns(table)}:
            await db.execute_write(f"alter table {quote(table)} add column {quote(output)} text")

    async def enqueue(
        self,
        datasette: Datasette,
        db: Database,
        table: str,
        filter_querystring: str,
        config: FormValues,
        actor_id: str | None = None,
    ) -> int:
        """Start a job. Its rows come without their images, which are read one by one when needed.

        Raises Forbidden for actors who may not run models: the job runs models later, when there is no request to
        check.
        """
        await _ensure_may_infer(datasette)
        # Datasette writes invalid SQL for a table without any columns.
        if config["column"] not in await db.primary_keys(table) and len(await db.table_columns(table)) > 1:
            without = urllib.parse.urlencode({"_nocol": config["column"]})
            filter_querystring = f"{filter_querystring}&{without}" if filter_querystring else without
        return int(await super().enqueue(datasette, db, table, filter_querystring, config, actor_id))

    async def enrich_batch(
        self,
        datasette: Datasette,
        db: Database,
        table: str,
        rows: list[dict[str, Any]],
        pks: list[str],
        config: FormValues,
        job_id: int,
    ) -> int:
        """Process a batch, and return the number of successful rows."""
        state = state_of(datasette)
        writer = DatasetteWriter(db, asyncio.get_running_loop())

        def work() -> Failed:
            with contextlib.closing(Batch(lambda: open_reader(db), writer, table, config["column"], rows)) as batch:
                return self.run(batch, state.vision.get(), config)

        with state.activity.keep_awake("enrichments"):
            try:
                failed = await asyncio.to_thread(work)
            except (Busy, StorageFailed) as error:  # the server stops, or others fill the queue or the disk
                raise self.Pause(str(error)) from None
            except VisionError as error:  # not about one row: the others would fail too
                raise self.Cancel(str(error)) from None
            ids = pks_for_rows(rows, pks)
            for position, reason in failed:
                await self.log_error(db, job_id, [ids[position]], reason)
        return len(rows) - len(failed)


class Embed(VisionEnrichment):
    """Embeds a column into the side table."""

    slug = "vision-embed"
    name = "Embed images or texts"
    description = "Embeddings for search and comparison, stored beside the table"

    def form(self, choices: forms.Choices, vision: Vision) -> Any:
        """Return the class of the form."""
        return forms.embed_form(choices)

    def run(self, batch: Batch, vision: Vision, config: FormValues) -> Failed:
        """Embed a batch."""
        return batch.embed(vision, config["model"])


class Classify(VisionEnrichment):
    """Writes the label of an image into a column."""

    slug = "vision-classify"
    name = "Classify images"
    description = "The labels that a model includes"

    def form(self, choices: forms.Choices, vision: Vision) -> Any:
        """Return the class of the form."""
        return forms.classify_form(choices)

    def suits(self, model: dict[str, Any]) -> bool:
        """Say whether a model has labels."""
        return bool(model["labels"])

    def run(self, batch: Batch, vision: Vision, config: FormValues) -> Failed:
        """Classify a batch."""
        model = vision.classifier(config["model"]).manifest.name
        k = _wanted(config)
        known = vision.services.get(model).manifest.form.embeds
        describe = _described(config, lambda output: vision.label(output, model, k))
        return batch.describe(vision, model, config["output"], describe, known=known)


class ZeroShot(VisionEnrichment):
    """Writes the best of the given labels for an image into a column."""

    slug = "vision-zero-shot"
    name = "Label images with your own labels"
    description = "The best of your labels for each image"

    def form(self, choices: forms.Choices, vision: Vision) -> Any:
        """Return the class of the form."""
        return forms.zero_shot_form(choices, vision.config.max_labels)

    def run(self, batch: Batch, vision: Vision, config: FormValues) -> Failed:
        """Label a batch."""
        model = vision.services.dual_encoder(config["model"]).manifest.name
        labels, prompts = vision.label_set(model, labels_of_text(config["labels"]))
        k = _wanted(config)
        describe = _described(config, lambda embedding: vision.score(embedding, labels, prompts, model, k))
        return batch.describe(vision, model, config["output"], describe, known=True)


async def _ensure_may_infer(datasette: Datasette) -> None:
    """Raise Forbidden if this is for a request by an actor who may not run models."""
    request = execution.current_request()
    if request is not None:
        await permissions.ensure(datasette, request.actor, permissions.INFER)


def _wanted(config: FormValues) -> int:
    return 1 if config.get("what", forms.LABEL) == forms.LABEL else forms.SHOWN_SCORES


def _described(config: FormValues, scores: Callable[[Any], list[dict[str, object]]]) -> Callable[[Any], str]:
    if config.get("what", forms.LABEL) == forms.LABEL:
        return lambda output: str(scores(output)[0]["label"])
    return lambda output: json.dumps(scores(output), ensure_ascii=False)


def enrichments() -> list[Enrichment]:
    """Return one instance of each."""
    return [Embed(), Classify(), ZeroShot()]
