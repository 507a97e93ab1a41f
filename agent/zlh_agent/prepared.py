"""The game that the container is prepared for, and its unit: game.toml as it was read last. Used by ``supervisor`` alone."""

from __future__ import annotations

from collections.abc import Callable

from zlh_agent.config import Game
from zlh_agent.unit import Unit


class Prepared:
    """``load`` reads game.toml (raises NotPrepared), ``unit_of`` makes the unit of a game."""

    def __init__(self, load: Callable[[], Game], unit_of: Callable[[Game], Unit]) -> None:
        self.load, self._unit_of = load, unit_of
        self._game: Game | None = None
        self._unit: Unit | None = None

    def read(self) -> None:
        """Raises NotPrepared, and then what was read before still counts."""
        game = self.load()
        if game != self._game or self._unit is None:
            self._game, self._unit = game, self._unit_of(game)

    @property
    def known(self) -> bool:
        """Whether there was anything to read, now or before."""
        return self._unit is not None

    @property
    def game(self) -> Game:
        assert self._game is not None, "read first"
        return self._game

    @property
    def unit(self) -> Unit:
        assert self._unit is not None, "read first"
        return self._unit
