"""Simulated arm: MuJoCo world, rendering, tasks, scripted expert, training and evaluation."""
