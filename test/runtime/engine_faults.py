"""Made in the engine process of a test: random:tiny that does what its prompt says."""

import os
import resource
import signal
import time

from pi05_ros.runtime.policy_loading import load_policy


class Faulty:
    def __init__(self, policy):
        self._policy = policy
        self.info = policy.info

    def warm_up(self):
        self._policy.warm_up()

    def close(self):
        self._policy.close()

    def infer(self, obs, *, seed=None, denoise_steps=None):
        word = obs.prompt or ""
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if word == "exit":
            os._exit(3)
        if word == "hang":
            time.sleep(600)
        if word.startswith("slow"):
            time.sleep(1.0)
        if word == "raise":
            raise ZeroDivisionError("a bug")
        if word == "cuda":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if word == "trap":  # a kernel that traps: the CUDA context is lost
            import torch

            torch.zeros(2, device="cuda")[torch.tensor([7], device="cuda")].cpu()
        if word == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (2**20, resource.RLIM_INFINITY))
            bytearray(2**30)
        return self._policy.infer(obs, seed=seed, denoise_steps=denoise_steps)


def make(parameters):
    return Faulty(load_policy(parameters))


def refuse(parameters):
    raise ValueError("this cannot be loaded")
