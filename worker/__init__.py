"""The worker: one process that runs tasks on the device it was given.

What users import from here, such as `Task` for annotations, they find in `gpuspool`. Everything
else is called by `__main__`, which the orchestrator starts and which is the first to be imported. A
worker imports nothing of the orchestrator: all that it needs to know stands in the spool.

What to open for what, from the top down:

- `attempt`: the life of a worker, from its first second to the link that closes it.
- `prepare`, `job`, `warmup`: making the job. `context`: what the job sees of us.
- `work`: the loop. `supply`, `backlog`: claiming tasks. `idle`: what it does without any.
- `execute`, `call`, `prefetch`, `outputs`, `results`, `trouble`: calling the job.
- `settle`: what the journal is told of each task.
- `beat`, `drain`, `parent`, `standing`, `timer`, `children`: what goes on beside the work.
"""
