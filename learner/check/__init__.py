"""The learner's part of `vcppo check`: does the model load, pack, save, and come back the same?"""
