"""The engine that computes action chunks on a robot, in evaluation and in a server."""
