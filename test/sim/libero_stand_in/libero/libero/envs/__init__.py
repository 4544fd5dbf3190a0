"""An environment that notes what is done to it and reports as robosuite's Panda does."""

import os

import numpy as np

OPENED: list["OffScreenRenderEnv"] = []
DONE_AFTER = 7
"""Steps after settling at which the tasks of odd initial states are done."""


class OffScreenRenderEnv:
    """Same use as the original; ``log`` holds the calls."""

    def __init__(self, **kwargs):
        assert os.path.exists(kwargs["bddl_file_name"])
        self.height, self.width = kwargs["camera_heights"], kwargs["camera_widths"]
        self.log = []
        self.closed = False
        self._state = None
        self._steps = 0
        OPENED.append(self)

    def seed(self, seed):
        """Seed of what is drawn."""
        self.log.append(("seed", seed))

    def reset(self):
        """New episode."""
        self.log.append(("reset",))
        self._state, self._steps = None, 0
        return self._observe()

    def set_init_state(self, init_state):
        """Go to a flattened simulator state."""
        assert init_state.shape == (92,)
        self.log.append(("state", float(init_state[0])))
        self._state = init_state
        return self._observe()

    def step(self, action):
        """One control period."""
        assert isinstance(action, list)
        assert len(action) == 7
        if self._steps >= 1000:
            raise ValueError("executing action in terminated episode")
        self._steps += 1
        self.log.append(("step", action))
        settling = 10
        odd = int(self._state[0] // 92) % 2 == 1
        done = np.bool_(odd and self._steps >= settling + DONE_AFTER)
        return self._observe(), 0.0, done, {}

    def close(self):
        """Free what is open."""
        self.closed = True

    def _observe(self):
        half = np.sqrt(0.5)
        return {
            "robot0_eef_pos": np.array([0.1, 0.2, 1.0 + self._steps / 1000]),
            "robot0_eef_quat": np.array([half, 0.0, 0.0, half]),
            "robot0_gripper_qpos": np.array([0.02, -0.02]),
            "agentview_image": self._picture(0),
            "robot0_eye_in_hand_image": self._picture(128),
        }

    def _picture(self, base):
        picture = np.full((self.height, self.width, 3), base, np.uint8)
        picture[0, 0] = (self._steps, 1, 2)  # ends up in the last row and column
        return picture
