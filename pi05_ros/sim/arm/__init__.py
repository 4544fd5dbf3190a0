"""The MuJoCo arm: world, tasks, rendering, scripted expert, driver node."""
