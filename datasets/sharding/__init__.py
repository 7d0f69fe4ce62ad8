"""Videos to shards: what `cavmae shard` does, in the order of the data.

`inputs` lists what there is to do, `clips` turns one input into samples (in a worker, which
`tools/pool` runs and survives), `assembly` joins their results into shards in the order of `plan`.
"""
