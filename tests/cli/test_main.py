"""The group `datasette vision`: its commands are named in one place, whatever has been imported."""

from __future__ import annotations

import click
from datasette.cli import cli

from datasette_vision.cli import bulk, demo, exit_codes, files, main, models, options, progress, search

MODULES = (bulk, demo, exit_codes, files, models, options, progress, search)


def test_every_command_of_a_module_is_in_the_group() -> None:
    made = [thing for module in MODULES for thing in vars(module).values() if isinstance(thing, click.Command)]
    assert {id(command) for command in made} == {id(command) for command in main.COMMANDS}
    assert list(main.vision_group().commands.values()) == list(main.COMMANDS)


def test_a_layer_above_brings_commands_of_its_own_and_leaves_the_others_as_they_are() -> None:
    other = click.Command("other")
    assert main.vision_group(other).commands["other"] is other
    assert "other" not in main.vision_group().commands


def test_datasette_has_the_group_with_check() -> None:
    vision = cli.commands["vision"]
    assert isinstance(vision, click.Group)
    assert set(vision.commands) == {command.name for command in main.COMMANDS} | {"check"}
