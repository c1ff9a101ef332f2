"""What torchrun and SLURM say of a process in its environment."""

import pytest

from dinox.engine.places import check_no_contradiction, find_place

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
}
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_JOB_NODELIST": "node[001-009]",
    "SLURM_STEP_NODELIST": "node[004,007]",
}


def without(variables, *names):
    return {name: value for name, value in variables.items() if name not in names}


def test_torchrun():
    place = find_place(TORCHRUN)
    assert (place.rank, place.world_size, place.local_rank, place.local_size, place.machine) == (5, 8, 1, 4, 1)
    assert (place.address, place.port, place.source) == ("first", 29500, "torchrun")
    again = find_place(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert again.job != place.job


def test_whoever_sets_the_five_variables_counts_as_torchrun():
    place = find_place(without(TORCHRUN, "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID"))
    assert (place.rank, place.local_size, place.machine) == (5, None, 0)


def test_a_task_of_srun():
    """The numbers are the step's: the allocation is larger."""
    place = find_place(SRUN)
    assert (place.rank, place.world_size, place.local_rank, place.local_size, place.machine) == (2, 3, 0, 1, 1)
    assert (place.address, place.source) == ("node004", "SLURM")
    assert place.port == 10000 + (4711 * 31 + 2) % 20000


def test_other_steps_and_jobs_have_other_ports_which_systems_do_not_hand_out():
    ports = {find_place(SRUN | {"SLURM_STEP_ID": step}).port for step in "0123"}
    assert len(ports | {find_place(SRUN | {"SLURM_JOB_ID": "4712"}).port}) == 5
    assert min(ports) > 1024 and max(ports) < 32768


def test_address_and_port_of_the_environment_come_first():
    place = find_place(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"})
    assert (place.address, place.port) == ("10.0.0.1", 1234)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # A batch script, or a shell of salloc: variables of the job, but no step.
        without(SRUN, "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE"),
        # An interactive step of one task, in an allocation of many.
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        # torchrun of one process, in a task of srun.
        SRUN | TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "8", "MASTER_ADDR": "a"},  # set by an administrator for all
    ],
)
def test_one_process_by_itself(environment):
    assert find_place(environment) is None


def test_torchrun_in_a_task_of_srun_counts():
    assert find_place(SRUN | TORCHRUN).source == "torchrun"


@pytest.mark.parametrize(
    "environment, expected",
    [
        (without(TORCHRUN, "LOCAL_RANK"), "WORLD_SIZE and RANK are set, but not LOCAL_RANK: expected all of"),
        (TORCHRUN | {"RANK": "8"}, "RANK: expected a whole number from 0 to 7, got '8'"),
        (TORCHRUN | {"WORLD_SIZE": "many"}, "WORLD_SIZE: expected a whole number of at least 1, got 'many'"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT: expected a whole number from 1 to 65535"),
        (SRUN | {"SLURM_PROCID": "3"}, "SLURM_PROCID: expected a whole number from 0 to 2, got '3'"),
        (SRUN | {"SLURM_STEP_NODELIST": "node[1-"}, r"SLURM_STEP_NODELIST: expected a list of nodes .*got 'node\[1-'"),
        (without(SRUN, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"), "SLURM_JOB_NODELIST is not set: set MASTER_ADDR"),
    ],
)
def test_variables_that_cannot_be_are_named(environment, expected):
    with pytest.raises(ValueError, match=expected):
        find_place(environment)


def options(**given):
    return {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"} | given


@pytest.mark.parametrize("num_gpus", [0, 1, 4])
def test_options_that_say_the_same_or_nothing_are_fine(num_gpus):
    check_no_contradiction(find_place(TORCHRUN), **options(num_gpus=num_gpus))


@pytest.mark.parametrize(
    "given, option",
    [
        ({"num_gpus": 8}, "--num-gpus"),
        ({"num_machines": 2}, "--num-machines"),
        ({"machine_rank": 1}, "--machine-rank"),
        ({"dist_url": "tcp://a:1"}, "--dist-url"),
    ],
)
def test_options_that_say_otherwise_are_to_be_left_out(given, option):
    with pytest.raises(ValueError, match=rf"torchrun has started 8 processes, 4 of them .* leave out {option}$"):
        check_no_contradiction(find_place(TORCHRUN), **options(**given))
