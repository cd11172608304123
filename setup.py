from setuptools import find_namespace_packages, setup

setup(
    name="libai-mae",
    version="0.1.0",
    description="Masked autoencoders on OneFlow and LiBai, with any parallel layout",
    license="Apache-2.0",
    python_requires=">=3.8,<3.11",
    packages=find_namespace_packages(include=["libai_ext*", "projects.MAE*"])
    + ["libai_ext.configs.common"],
    # Shared config nodes stand at the top of a checkout, and beside the code once installed.
    package_dir={"libai_ext.configs": "configs"},
    install_requires=["oneflow==0.9.0", "libai==0.1.1", "numpy<1.24", "Pillow", "omegaconf"],
)
