from .sharding import is_sharded as is_sharded, sharded_model as sharded_model
from .workers import Parallel as Parallel, rank as rank, world_size as world_size
