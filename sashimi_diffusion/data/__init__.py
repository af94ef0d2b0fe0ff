"""Data sets of recordings, audio files, mel spectrograms and pictures of audio."""

from sashimi_diffusion.data.audio import read_audio, resample, write_audio
from sashimi_diffusion.data.audio_folder import AudioFolder
from sashimi_diffusion.data.hub_dataset import HubDataset
from sashimi_diffusion.data.mel import LogMel, MelSettings
from sashimi_diffusion.data.mel_envelope import MelEnvelope
from sashimi_diffusion.data.pictures import contact_sheet
from sashimi_diffusion.data.speech_commands import SpeechCommands, SpeechCommandsDigits
from sashimi_diffusion.data.tar_shards import TarShards

__all__ = [
    "AudioFolder",
    "HubDataset",
    "LogMel",
    "MelEnvelope",
    "MelSettings",
    "SpeechCommands",
    "SpeechCommandsDigits",
    "TarShards",
    "contact_sheet",
    "read_audio",
    "resample",
    "write_audio",
]
