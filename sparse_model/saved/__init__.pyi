from .openai import load_openai as load_openai
from .pretrained import from_pretrained as from_pretrained, save_pretrained as save_pretrained
