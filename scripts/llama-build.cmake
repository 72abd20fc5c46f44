# Read by llama.cpp's own project() when scripts/setup builds it.
# llama-cpp-python insists on llama.cpp's helper library for its command-line tools, which is not used from Python at all
# and takes nearly half of the build: 134 s with it, 74 s without it (2 cores). A plain variable hides the cache entry.
set(LLAMA_BUILD_COMMON OFF)
