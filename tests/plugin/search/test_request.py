"""plugin/search/request.py: a search and its address, and back."""

from __future__ import annotations

import base64
import struct
from urllib.parse import parse_qsl

import pytest

from datasette_vision.errors import InvalidArgument
from datasette_vision.plugin.search.request import MAX_EXAMPLES, LikeRow, SearchRequest, encode_embedding

BLOB = struct.pack("<4f", 0.5, -0.5, 0.5, 0.5)
TEXT = encode_embedding(BLOB)


def read(query: str) -> SearchRequest:
    return SearchRequest.read(parse_qsl(query, keep_blank_values=True))


ADDRESSES = [
    ("", SearchRequest()),
    ("q=purple+heart", SearchRequest(q="purple heart")),
    ("q=fruit&_q_weight=0.5&_not=red", SearchRequest(q="fruit", q_weight=0.5, but_not="red")),
    ("_like=1F34F", SearchRequest(examples=(LikeRow("1F34F", 1.0),))),
    (
        "_like=1F34F%3A2&_unlike=1F34E&_unlike=1F351%3A0.25",
        SearchRequest(examples=(LikeRow("1F34F", 2), LikeRow("1F34E", -0.5), LikeRow("1F351", -0.25))),
    ),
    ("_like=%3A1", SearchRequest(examples=(LikeRow("", 1.0),))),  # a key that is an empty text
    ("_like=a%2Cb~20c", SearchRequest(examples=(LikeRow("a,b~20c", 1.0),))),
    (f"_embedding={TEXT}", SearchRequest(embedding=TEXT)),
    (f"_embedding={TEXT}%3A0.5", SearchRequest(embedding=TEXT, embedding_weight=0.5)),
    ("_model=clip&_column=image", SearchRequest(model="clip", column="image")),
    ("_threshold=0.25", SearchRequest(threshold=0.25)),
    ("_size=10&_page=3", SearchRequest(size=10, page=3)),
    (
        "q=a&name__contains=b&q__exact=c&_where=id+%3E+5",
        SearchRequest(q="a", filters=(("name__contains", "b"), ("q__exact", "c"), ("_where", "id > 5"))),
    ),
]


@pytest.mark.parametrize(("query", "request_"), ADDRESSES)
def test_an_address_and_its_search(query: str, request_: SearchRequest) -> None:
    assert read(query) == request_
    assert request_.query_string() == query
    assert request_.asks == bool(request_.q or request_.but_not or request_.examples or request_.embedding)


@pytest.mark.parametrize(
    ("query", "short"),
    [
        ("q=&_not=&_threshold=0&_model=&_column=&_size=&_page=&_like=&_unlike=", ""),
        ("q=+cat+&_threshold=-0.5", "q=cat"),
        ("_like=a%3A1&_unlike=b%3A0.5&_like=c%3A-0.5", "_like=a&_unlike=b&_unlike=c"),
        ("_unlike=a%3A-1", "_like=a"),
        ("_like=a&_like=b&_unlike=a", "_like=b&_unlike=a"),  # the last word about a row counts
        ("_like=a&_like=a%3A0", ""),
        ("_page=1&_size=24", ""),
        (f"_embedding={base64.b64encode(BLOB).decode()}".replace("+", "%2B"), f"_embedding={TEXT}"),
    ],
)
def test_addresses_become_short(query: str, short: str) -> None:
    assert read(query).query_string() == short


def test_as_many_examples_as_may_be() -> None:
    query = "&".join(f"_like={number}" for number in range(MAX_EXAMPLES))
    assert len(read(query).examples) == MAX_EXAMPLES
    assert len(read(f"{query}&_like=0%3A2").examples) == MAX_EXAMPLES  # the first of them again


def test_another_search_begins_at_its_first_page() -> None:
    request = read("q=cat&_page=3")
    assert request.query_string() == "q=cat&_page=3"
    assert request.query_string(page=4) == "q=cat&_page=4"
    assert request.query_string(q="dog") == "q=dog"
    assert request.with_example("a", 1.0) == "q=cat&_like=a"


def test_an_example_has_one_weight() -> None:
    request = read("_like=a&_like=b")
    assert request.with_example("a", -0.5) == "_like=b&_unlike=a"
    assert request.with_example("a", 0) == "_like=b"


def test_the_largest_page() -> None:
    assert SearchRequest.read([("_size", "max")], 300).size == 300
    assert SearchRequest.read([], 10).size == 10
    with pytest.raises(InvalidArgument, match="_size: expected a whole number from 1 to 300"):
        SearchRequest.read([("_size", "301")], 300)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("_size=0", "_size: expected a whole number from 1 to 1000, found '0'"),
        ("_size=x", "_size: expected a whole number"),
        ("_page=-1", "_page: expected a whole number"),
        ("_page=" + "0" * 19 + "1" + "9" * 30, "_page: expected a whole number"),
        ("_size=" + "0" * 5000 + "1", "_size: expected a whole number"),
        ("_page=%D9%A1", "_page: expected a whole number"),  # a digit, but not of ours
        ("_threshold=high", "_threshold: expected a number from -1000 to 1000, found 'high'"),
        ("_threshold=nan", "_threshold: expected a number"),
        ("_like=a%3Ax", "_like: expected a number"),
        ("_like=a%3A1e9", "_like: expected a number"),
        ("_q_weight=inf", "_q_weight: expected a number"),
        ("_embedding=%C3%A4", "_embedding: expected base64 of float32 values, found text that is not base64"),
        ("_embedding=AAAA", "_embedding: expected an embedding, a BLOB of 4 bytes per float, found 3 bytes"),
        (f"_embedding={encode_embedding(struct.pack('<f', float('nan')))}", "_embedding: expected an embedding of fin"),
        ("&".join(f"_like={number}" for number in range(MAX_EXAMPLES + 1)), "expected at most 32 examples, found 33"),
    ],
)
def test_what_cannot_be_used_is_named(query: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(query)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("page", ["0" * 19 + "1" + "9" * 5, "1" * 5000, "0" * 5000])
def test_a_long_number_is_refused(page: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^_page: expected a whole number from 1 to"):
        SearchRequest.read([("_page", page)])
