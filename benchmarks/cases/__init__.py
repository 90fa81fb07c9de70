"""What `BENCH="gae wire"` names: each module has ``run(settings) -> list[Figure]``."""
