"""Common data sets: layout, number of images, protocol, and known leaks between training and test parts.

Nothing is downloaded. Licence terms are for information only; those of the source apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KnownSet:
    """layout: folders of observed + clean below the set's own, as `pairs.find_pairs` takes them; "" where there are no
    pairs. images: training + test. protocol: of the published numbers, a key of `metrics.PROTOCOLS`; "" for none.
    leaks: names of other sets whose test pictures must not be scored after training on this one, and why.
    """

    name: str
    task: str
    layout: str
    images: str
    protocol: str
    terms: str
    notes: str = ""
    leaks: Mapping[str, str] = field(default_factory=dict)


CATALOG = (
    KnownSet(
        "Rain100L",
        "rain",
        "rain-N + norain-N in one folder (RainTrainL, with rainregion-N); rainy/rain-N + norain-N; input + target",
        "200 + 100",
        "y-matlab",
        "research",
        "The maps rainregion-N are read as maps: rainregion-*. Issued more than once with other pictures. Some test "
        "scenes are there twice: two names, two rains.",
    ),
    KnownSet(
        "Rain100H",
        "rain",
        "rain-N + norain-N in one folder (RainTrainH); rainy/rain-N + norain-N; input + target",
        "1800 + 100",
        "y-matlab",
        "research",
        "The same clean test scenes as Rain100L.",
        {"Rain100H": "546 of the 1800 training pictures share their scenes with the test set; PReNet leaves them out"},
    ),
    KnownSet(
        "Rain1400",
        "rain",
        "rainy_image/I_J + ground_truth/I, 14 rains a scene",
        "12600 + 1400",
        "y-matlab",
        "see its authors",
    ),
    KnownSet(
        "Rain13K",
        "rain",
        "Rain13K/{input,target}; test/{Test100,Rain100H,Rain100L,Test1200,Test2800}/{input,target}",
        "13712 + five test sets",
        "y-matlab",
        "see its authors",
        "Put together from other sets, whose leaks it inherits.",
    ),
    KnownSet("LOL-v1", "low light", "our485/{low,high}; eval15/{low,high}", "485 + 15", "lol-rgb", "research"),
    KnownSet(
        "LOL-v2-real",
        "low light",
        "Real_captured/{Train,Test}/{Low,Normal}",
        "689 + 100",
        "lol-rgb",
        "research",
        leaks={"LOL-v1": "version 2 holds the scenes of version 1, its test pictures among the training ones"},
    ),
    KnownSet(
        "LOL-v2-synthetic", "low light", "Synthetic/{Train,Test}/{Low,Normal}", "900 + 100", "lol-rgb", "research"
    ),
    KnownSet(
        "MIT-Adobe-5K",
        "low light",
        "{train,test}/{input,expertC}, as exported from its raw photographs; {input,target}; {low,high}",
        "5000 in all, splits differ",
        "rgb",
        "see its authors",
        "Published as raw photographs and the edits of five experts: pairs are what each user exports.",
    ),
    KnownSet(
        "RESIDE-ITS",
        "haze",
        "hazy/ID_N + clear/ID, clean pictures 10 pixels larger on each side; ITS_haze + ITS_clear",
        "13990 of 1399 scenes",
        "rgb-float",
        "non-commercial",
    ),
    KnownSet(
        "RESIDE-OTS",
        "haze",
        "hazy/partN/ID_airlight_beta + clear/ID; OTS + clear_images; depth/ID.mat",
        "35 hazes a scene",
        "rgb-float",
        "non-commercial",
        "Airlight and beta stand in the file's name. depth holds .mat files of MATLAB's version 7.3: pip install h5py.",
        {"SOTS-outdoor": "scenes of the outdoor test set are in the training set, as users of it have reported"},
    ),
    KnownSet("SOTS-indoor", "haze", "hazy/ID_N + gt/ID", "500 of 50 scenes", "rgb-float", "non-commercial"),
    KnownSet("SOTS-outdoor", "haze", "hazy/ID_airlight_beta + gt/ID", "500", "rgb-float", "non-commercial"),
    KnownSet("HazeRD", "haze", "hazy/SCENE_DENSITY + clear/SCENE", "75 of 15 scenes", "rgb", "research"),
    KnownSet(
        "UIEB",
        "underwater",
        "raw-890 + reference-890; challenging-60",
        "890, and 60 without truth",
        "rgb",
        "academic, no redistribution",
        "There is no official split: say which pictures were tested on, with a manifest.",
    ),
    KnownSet("EUVP", "underwater", "trainA + trainB", "several parts", "rgb", "research"),
    KnownSet(
        "BSDS500",
        "clean photographs",
        "",
        "500",
        "",
        "non-commercial research",
        "What rain, noise and blur are drawn on, in this library and in many sets.",
        dict.fromkeys(
            ("Rain100L", "Rain100H", "Rain1400", "CBSD68"), "it holds their test scenes: audit.leaks finds them"
        ),
    ),
    KnownSet("Kodak24", "clean photographs", "", "24", "", "free"),
    KnownSet(
        "Levin",
        "deconvolution",
        "",
        "4 photographs x 8 kernels",
        "grey",
        "see its authors",
        "Levin09blurdata/im05_flit01.mat and 31 more, each with x (sharp), y (blurred), f (kernel): x and f are read.",
    ),
    KnownSet(
        "Sun",
        "deconvolution",
        "",
        "80 photographs x 8 kernels",
        "grey",
        "see its authors",
        "img*_groundtruth_img.png and kernel*_groundtruth_kernel.png among its results; patterns choose them.",
    ),
)


def known_leaks(train: str, test: str) -> str | None:
    """Why a model trained on `train` must not be scored on `test`, or None where nothing is known (then audit them).

    >>> known_leaks("LOL-v2-real", "LOL-v1")
    'version 2 holds the scenes of version 1, its test pictures among the training ones'
    >>> known_leaks("UIEB", "LOL-v1")
    """
    return next((known.leaks[test] for known in CATALOG if known.name == train and test in known.leaks), None)
