# node-gyp's front door: runs the CMake build, which is the only description of what is compiled.
{
  "targets": [{
    "target_name": "deem",
    "type": "none",
    "actions": [{
      "action_name": "cmake",
      "inputs": ["CMakeLists.txt", "scripts/native.mjs"],
      "outputs": ["<(PRODUCT_DIR)/deem.node"],
      "action": ["node", "scripts/native.mjs"]
    }]
  }]
}
