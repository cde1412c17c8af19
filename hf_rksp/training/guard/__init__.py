"""The guard: is a step of a run healthy, and what is done if it is not?"""
