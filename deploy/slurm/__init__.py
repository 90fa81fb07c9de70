"""A run on a Slurm cluster: one job for the run, further jobs for generators that join it (docs/slurm.md).

slurm_command.py   `vcppo slurm`: what it takes on the command line
run_slurm.py       its work: refuses, writes, submits
batch_script.py    what is asked for, and the script of it: pure
cluster.py         what Slurm says of its partitions, and what does not fit them
role.py            what each task of a job runs: head, learner, generator
head.py            Redis, buffers and learner on the first node, as `vcppo up` runs them
head_note.py       where the head is: the file by which the others find it
"""
