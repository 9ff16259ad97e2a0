from .claim import Claim as Claim, ClaimPart as ClaimPart, Judgement as Judgement
from .landed import Landed as Landed, land_study as land_study
from .table import CLAIMS as CLAIMS
from .tables import written_page as written_page
