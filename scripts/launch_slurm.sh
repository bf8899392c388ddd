#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One `jaxlm` command as a SLURM job, one process per task:
#
#   sbatch --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 scripts/launch_slurm.sh \
#       train configs/dense_110m.gin --run runs/big
#
# One task per GPU; on CPUs any number of tasks, with `--cpu-devices N` behind the command.  Python
# with jaxlm must be on PATH, or set JAXLM to another way to start it.  The processes find each other
# by what SLURM tells them.  Two minutes before its time is up, or when it has to make room, the job
# writes a checkpoint; then it queues again and goes on from there.
#SBATCH --job-name=jaxlm
#SBATCH --output=jaxlm-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue

srun --label ${JAXLM:-jaxlm} "$@"
code=$?
# 75: stopped, to be continued.  A requeued job keeps its number and its log.
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
