"""Drawing of synthetic images: people for re-identification, shapes and patterns for scenes."""


def single_threaded(worker: int) -> None:
    """Keep OpenCV from starting threads in a loader's worker."""
    import cv2

    cv2.setNumThreads(0)
