"""Where the time of the steps in learner.profile_steps goes: a trace of the learner, flame graphs of all processes."""
