from setuptools import find_namespace_packages, find_packages, setup

# What pyproject.toml cannot say of packages; the rest stands there.
setup(
    # "projects" is a namespace that LiBai's own projects share.
    packages=find_packages(include=["libai_ext*"])
    + find_namespace_packages(include=["projects.MAE*"])
    + ["libai_ext.configs.common", "projects.MAE.tools"],
    # In a checkout these stand at the top, once installed beside the code.
    package_dir={"libai_ext.configs": "configs", "projects.MAE.tools": "tools"},
    # The native kernels are built on the machine that they run on.
    package_data={"libai_ext": ["csrc/**/*.h", "csrc/**/*.cpp"]},
)
