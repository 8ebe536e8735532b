"""The table of SQL functions, from which their registration, documentation and tests are derived."""

from __future__ import annotations

from dataclasses import dataclass

from datasette_vision.models.tasks import operations

ANY_NUMBER = -1


@dataclass(frozen=True)
class SqlFunction:
    """One SQL function: its signature, its result, and an example that runs on the demo database."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    returns: str
    example: str
    aggregate: bool = False
    variadic: bool = False
    reads_tables: bool = False  # on the connection that calls it
    drop_in: bool = False  # stands in for datasette-llm-embed's function of the same name
    instant: bool = False  # never waits for another thread or a lock: see garbage.py

    @property
    def signature(self) -> str:
        """The function as documentation shows it, with optional arguments in brackets."""
        arguments = ", ".join(self.required) + (", …" if self.variadic else "")
        if len(self.optional) > 2:  # cog would interpret three brackets in a row
            arguments += "".join(f" [, {name}]" for name in self.optional)
        else:
            arguments += "".join(f" [, {name}" for name in self.optional) + "]" * len(self.optional)
        return f"{self.name}({arguments})"

    @property
    def arities(self) -> list[int]:
        """The numbers of arguments to register, as sqlite3.create_function() takes them."""
        if self.variadic:
            return [ANY_NUMBER]
        return [len(self.required) + extra for extra in range(len(self.optional) + 1)]


_APPLE = "(select image from emoji where name = 'red apple')"
_PEAR = "(select image from emoji where name = 'pear')"

FUNCTIONS: tuple[SqlFunction, ...] = (
    SqlFunction(
        "vision_embed",
        ("input",),
        ("model",),
        "The embedding of a TEXT, from the text tower, or of an image BLOB, from the image tower: a unit-length "
        "float32 little-endian BLOB, the format of llm, sqlite-vec and datasette-faiss. "
        "NULL for a BLOB that is not an image.",
        "select length(vision_embed('purple and gold')) as bytes",
    ),
    SqlFunction(
        "vision_embed_text",
        ("text",),
        ("model",),
        "The same, for TEXT only.",
        f"select round(vision_similarity(vision_embed_text('red apple'), vision_embed({_APPLE})), 2) as similarity",
    ),
    SqlFunction(
        "vision_embed_image",
        ("image",),
        ("model",),
        "The same, for an image only: a BLOB, or TEXT that is a data: URI or base64, which can be a query parameter.",
        "select vision_embed_image('data:image/gif;base64,R0lGODdhAQABAIAAAP8AAP///ywAAAAAAQABAAACAkQBADs=') "
        "is not null as readable",
    ),
    SqlFunction(
        "vision_similarity",
        ("a", "b"),
        (),
        "The cosine of two embeddings, from -1 to 1. NULL for a BLOB that is not an embedding; an error for embeddings "
        "of two models, which cannot be compared.",
        "select name from emoji join _vision_emoji using (hexcode)\n"
        "order by vision_similarity(embedding, vision_embed('purple heart')) desc limit 3",
        instant=True,
    ),
    SqlFunction(
        "vision_average",
        ("embedding",),
        (),
        "Aggregate: the unit-length mean of embeddings. Ignores NULL and BLOBs that are not embeddings.",
        "select name from emoji join _vision_emoji using (hexcode) order by vision_similarity(embedding, (\n"
        "  select vision_average(embedding) from emoji join _vision_emoji using (hexcode)\n"
        "  where subgroup = 'food-fruit')) desc limit 3",
        aggregate=True,
        instant=True,
    ),
    SqlFunction(
        "vision_combine",
        ("embedding", "weight"),
        (),
        "The unit-length weighted sum of embeddings, given as pairs. “Like this, but not that” has a negative weight.",
        "select name from emoji join _vision_emoji using (hexcode) order by vision_similarity(embedding,\n"
        "  vision_combine(vision_embed('fruit'), 1, vision_embed('red'), -0.5)) desc limit 3",
        variadic=True,
        instant=True,
    ),
    SqlFunction(
        "vision_to_json",
        ("embedding",),
        (),
        "An embedding as a JSON array of floats.",
        "select vision_to_json(vision_from_json('[0.5, 0.25]')) as embedding",
        instant=True,
    ),
    SqlFunction(
        "vision_from_json",
        ("json",),
        (),
        "A JSON array of floats as an embedding, without normalising it. NULL for anything else.",
        "select hex(vision_from_json('[1, 0.5]')) as embedding",
        instant=True,
    ),
    SqlFunction(
        "vision_from_base64",
        ("base64",),
        (),
        "An embedding from base64 of its float32 values, as JSON APIs send it, so that it can be a query parameter. "
        "NULL for anything else.",
        "select vision_to_json(vision_from_base64('AACAPwAAAD8=')) as embedding",
        instant=True,
    ),
    SqlFunction(
        "vision_classify",
        ("image",),
        ("model", "k"),
        'JSON array of the `k` best (5) `{"label", "score"}`, best first, from the labels that the model includes: a '
        "fixed-label classifier, or a dual encoder with labels in its manifest.",
        f"select json_extract(vision_classify({_PEAR}), '$[0].label') as label",
    ),
    SqlFunction(
        "vision_zero_shot",
        ("image_or_embedding", "labels"),
        ("model",),
        'The same over labels you give: a JSON array of strings, or of `{"label", "prompt"}`; or an object '
        '`{"labels": […], "template": "a photo of a {}", "multi_label": false, "temperature": 1.0}`. With '
        "`multi_label` each score is independent; a temperature above 1 evens out the scores.",
        f'select json_extract(vision_zero_shot({_APPLE}, \'["fruit", "animal", "flag"]\'), \'$[0].label\') as label',
    ),
    SqlFunction(
        "vision_label",
        ("image_or_embedding", "labels"),
        ("model",),
        "The best of these labels as TEXT, for GROUP BY.",
        'select vision_label(embedding, \'["food", "animal", "flag"]\') as label, count(*) as images\n'
        "from _vision_emoji group by label order by label",
    ),
    SqlFunction(
        "vision_search",
        ("table", "query"),
        ("k", "model", "column", "rows"),
        "JSON array of the `k` rows (10) closest to a TEXT, an image BLOB or an embedding, each as "
        '`{"rowid", "similarity"}`, best '
        "first, for `json_each()`. Beside the rowid, or where there is none, the key stands as an object of its "
        "columns, `key`, unless it is the rowid itself. `rows` is a JSON array of those to "
        "search among: rowids, or keys where there are none. See [Search](search.md).",
        "select name, round(json_extract(value, '$.similarity'), 2) as similarity\n"
        "from json_each(vision_search('emoji', 'purple heart', 3))\n"
        "join emoji on emoji.rowid = json_extract(value, '$.rowid')",
        reads_tables=True,
    ),
    SqlFunction(
        "vision_error",
        ("image",),
        (),
        "Why this image cannot be read, or NULL if it can be: finds the bad rows.",
        "select vision_error(x'89504e470d0a1a0a') as error",
    ),
    SqlFunction(
        "vision_info",
        ("image",),
        (),
        "JSON object: `format`, `width`, `height`, `orientation` (the EXIF number, 1 to 8; width and height"
        " are those of the "
        "upright image) and `bytes`.",
        f"select json_extract(vision_info({_APPLE}), '$.format') as format",
        instant=True,
    ),
    SqlFunction(
        "vision_thumbnail",
        ("image", "pixels"),
        (),
        "A small upright WebP BLOB with a longer edge of at most `pixels`; never enlarged.",
        f"select json_extract(vision_info(vision_thumbnail({_APPLE}, 32)), '$.width') as width",
    ),
    SqlFunction(
        "vision_models",
        (),
        (),
        "JSON array of the installed models: `name`, `task`, `dimensions`, `precision`, number of `labels`, whether it "
        "is the `default`, which parts are `loaded`, and a `description`.",
        "select json_extract(value, '$.name') as name from json_each(vision_models()) limit 1",
    ),
    SqlFunction(
        "llm_embed",
        ("model", "input"),
        (),
        "Drop-in for datasette-llm-embed, with the same BLOBs as llm-clip: *not* normalised. Takes any model"
        " of this plugin "
        "by its name (or as `vision/<name>`, its name in llm, which gives unit length as in llm), or any other "
        "embedding model of llm, loaded once and kept.",
        "select length(llm_embed('tiny-emoji', 'purple and gold')) as bytes",
        drop_in=True,
    ),
    SqlFunction(
        "llm_embed_cosine",
        ("a", "b"),
        (),
        "Drop-in: as vision_similarity().",
        "select round(llm_embed_cosine(vision_from_json('[1, 0]'), vision_from_json('[1, 1]')), 4) as cosine",
        drop_in=True,
        instant=True,
    ),
    SqlFunction(
        "llm_embed_decode",
        ("embedding",),
        (),
        "Drop-in: an embedding as a JSON array of floats, each float32 written as the float64 it equals.",
        "select llm_embed_decode(vision_from_json('[0.5, 0.25]')) as floats",
        drop_in=True,
        instant=True,
    ),
    SqlFunction(
        "llm_embed_average",
        ("embedding",),
        (),
        "Drop-in, aggregate: the mean of embeddings, *not* normalised.",
        "select llm_embed_decode(llm_embed_average(vision_from_json(value))) as mean\n"
        "from (select '[1, 0]' as value union all select '[0, 1]')",
        aggregate=True,
        drop_in=True,
        instant=True,
    ),
)


def functions() -> tuple[SqlFunction, ...]:
    """Return all functions: those in the table, and one for each operation of a task."""
    return (
        *FUNCTIONS,
        *(
            SqlFunction(f"vision_{each.name}", ("image",), ("model",), each.description, each.example)
            for _, each in operations()
        ),
    )
