"""The laboratory: questions about π0 as experiments that one command repeats, in minutes on a CPU.

    worlds        planar worlds in NumPy, for any number of episodes at once; a Gymnasium one
    hidden, arms  a world where the present state is not enough; one of arms with joints
    data          demonstrations of them, written as RLDS
    detour        ways round the obstacle as trainings, which several experiments share
    gaussian      a training whose velocity field is known
    runs          one training, and a policy in closed loop, by the project's own train and rollout
    plan          an experiment: trainings, what is measured, seeds, what each run left
    statistics    differences paired by seed, their intervals, and the power of a number of seeds
    pages         a page for each experiment, and the overview
    experiments/  a file for each experiment

It is the house's outermost room: it imports the others, and nothing imports it but its command.
"""
