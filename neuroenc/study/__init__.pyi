from .config import StudyConfig as StudyConfig
