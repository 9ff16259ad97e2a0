from .ablation import Pretraining as Pretraining, mean_activations as mean_activations
from .batches import AnswerBatch as AnswerBatch
from .calibration import Calibration as Calibration
from .compact import AblatedModel as AblatedModel, Gates as Gates
from .nodes import NodeIndex as NodeIndex
