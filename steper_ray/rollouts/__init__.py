"""The one machine that asks many questions: build, evaluation, self-distillation and validation go through this door.

`run(specs, questions, pool)` returns a RolloutSet for each spec. Its invariants:

- Every (question, sample) is in the set once: as a final trajectory, or as owed, with the error and the number of
  attempts.
- What circumstances did (endpoint busy or down, time-out, out of memory, a dead engine, a lost shard of the index) is
  owed, never final. What the question did (answered, step limit, empty, rejected) is final.
- Owed questions are asked again at the end of the same run and by every rerun; final ones never again; a rerun of a
  finished set asks nothing.
- Nothing waits for the slowest question; one question's failure, a dead engine included, costs no other question.
- The same inputs give the same trajectories, whatever the number of actors, kills and reruns.
- Memory does not grow with the number of questions, in the driver or in an actor.
- What is read was verified against its checksum; a damaged shard is made again.

Ray is in run.py alone, and imported with it: the files of a set are read without Ray.
"""
