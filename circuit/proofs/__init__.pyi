from .faithfulness import necessity as necessity
from .resample import resampled_losses as resampled_losses
from .verdicts import Verdict as Verdict
