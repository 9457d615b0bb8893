"""Images with the segments they are made of: synthetic scenes, COCO panoptic, ADE20K, folders of masks."""

from visionattn.data.scenes.loading import SceneBatch
from visionattn.data.scenes.module import SceneData
from visionattn.data.scenes.opening import open_scenes
from visionattn.data.scenes.scene import UNLABELLED, Scene, Scenes

__all__ = ["UNLABELLED", "Scene", "SceneBatch", "SceneData", "Scenes", "open_scenes"]
