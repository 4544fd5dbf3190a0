"""openpi's clients speak the numbers of the training data, our own form SI units.

For a request in openpi's keys the state is converted to the profile's units on the way in, and
the answer is what openpi's server would send: un-normalized, absolute where training subtracted
the state, neither scaled to SI nor clipped (that is the client's part there).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pi05_ros.policy.checkpoints.recipe import Recipe
from pi05_ros.policy.interface import ActionChunk, Observation
from pi05_ros.policy.robots.units import Unit, UnitMap
from pi05_ros.policy.transforms.transforms import actions_from_model, state_to_model


class OpenpiUnits:
    """Conversions of one robot.

    Args:
        recipe: of the loaded policy.

    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        plain = UnitMap(Unit.DIMENSIONLESS)
        profile = recipe.profile
        self._as_trained = dataclasses.replace(
            profile,
            state_maps=tuple(plain for _ in profile.state_names),
            action_maps=tuple(plain for _ in profile.action_names),
        )

    def observation(self, obs: Observation) -> Observation:
        """The observation of an openpi client with its state ``[n]`` in the profile's units."""
        maps = self._recipe.profile.state_maps
        state = np.array(obs.state, copy=True)
        if any(not unit_map.identity for unit_map in maps):
            state = state.astype(np.float64)
            for i, unit_map in enumerate(maps):
                state[i] = unit_map.to_robot(state[i])
        return dataclasses.replace(obs, state=state)

    def actions(self, chunk: ActionChunk, obs: Observation) -> np.ndarray:
        """Actions ``[H, A]`` as openpi's server answers; ``obs`` as the client sent it."""
        raw = self._recipe.normalization.actions.unnormalize(chunk.normalized)
        state = state_to_model(self._as_trained, np.asarray(obs.state))
        return actions_from_model(self._as_trained, raw, state)
