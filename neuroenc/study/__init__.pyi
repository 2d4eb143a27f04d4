from .config import StudyConfig as StudyConfig
from .read import example_config as example_config, list_examples as list_examples, read_config as read_config
