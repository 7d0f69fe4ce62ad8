"""Sharding: converts videos to shards for `cavmae shard`, in the order of the data.

`inputs` lists the videos, `clip_extraction` turns one input into samples (in a worker process of
`common/worker_pool`, which may crash), `shard_writer` joins the samples into shards in the order of
the plan that `job_state` keeps.
"""
