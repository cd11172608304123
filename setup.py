from setuptools import find_namespace_packages, find_packages, setup

setup(
    name="libai-mae",
    version="0.1.0",
    description="Masked autoencoders on OneFlow and LiBai, with any parallel layout",
    license="Apache-2.0",
    python_requires=">=3.8,<3.11",
    # "projects" is a namespace that LiBai's own projects share.
    packages=find_packages(include=["libai_ext*"])
    + find_namespace_packages(include=["projects.MAE*"])
    + ["libai_ext.configs.common"],
    # Shared config nodes stand at the top of a checkout, and beside the code once installed.
    package_dir={"libai_ext.configs": "configs"},
    # The native kernels are built on the machine that they run on.
    package_data={"libai_ext": ["csrc/*.*", "csrc/*/*.*", "csrc/*/*/*.*"]},
    # tools/setup.sh installs LiBai itself, without the linters that its requirements pin.
    install_requires=[
        "oneflow==0.9.0",
        "libai==0.1.1",
        "numpy<1.24",
        "Pillow",
        "omegaconf",
        "hydra-core",
        "PyYAML",
        "psutil",
        "safetensors",
        "tensorboardX",
        "tqdm",
        "scikit-learn",
    ],
)
