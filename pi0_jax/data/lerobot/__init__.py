"""Imports LeRobot datasets (LeRobotDataset v2.1 and v3.0) as RLDS.

    v2.1  data/chunk-000/episode_000000.parquet                   one file per episode
          videos/chunk-000/observation.images.top/episode_000000.mp4
          meta/info.json, tasks.jsonl, episodes.jsonl
    v3.0  data/chunk-000/file-000.parquet                         many episodes per file
          videos/observation.images.top/chunk-000/file-000.mp4
          meta/info.json, tasks.parquet, episodes/chunk-000/file-000.parquet

    info.json -> declared     what the features are
    tables of meta/ -> layout which rows and which seconds of which files are an episode
    tables, videos -> steps   one episode, checked and encoded
    shards                    what one worker writes, and goes on with after it was killed
    importer                  plans, workers, the finished dataset
    draft                     the row and the robot's record, with questions where a person must say

A feature `observation.state` becomes the field steps/observation/state, `observation.images.top`
becomes steps/observation/images/top, and `next.reward` becomes steps/next_reward.
"""
