from .kinds import Parallel as Parallel
from .sharding import is_sharded as is_sharded, sharded_model as sharded_model
from .workers import rank as rank, world_size as world_size
