#!/usr/bin/env bash
# Run a command under the Vulkan validation layer with synchronization checks: tools/validate.sh COMMAND...
#
# Fails when the command fails or the layer says anything. The layer is Debian's package
# vulkan-validationlayers. Pytest's captured output would hide messages, so pytest gets -s.
set -euo pipefail
cd "$(dirname "$0")/.."

layer=VK_LAYER_KHRONOS_validation
if ! compgen -G "/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json" >/dev/null &&
    ! compgen -G "/etc/vulkan/explicit_layer.d/VkLayer_khronos_validation.json" >/dev/null &&
    [ -z "${VK_LAYER_PATH:-}${VK_ADD_LAYER_PATH:-}" ]; then
    echo "validate: $layer is not installed (apt-get install vulkan-validationlayers)" >&2
    exit 1
fi

mkdir -p build/validate
cat >build/validate/vk_layer_settings.txt <<END
khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG
khronos_validation.log_filename = stdout
khronos_validation.report_flags = error,warn
khronos_validation.enables = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
END
export VK_INSTANCE_LAYERS=$layer VK_LAYER_SETTINGS_PATH=$PWD/build/validate

log=build/validate/log.txt
options=()
case " $* " in *" pytest "*) options=(-s -p no:xdist -p no:cacheprovider) ;; esac
"$@" "${options[@]}" 2>&1 | tee "$log"
if grep -qE 'VUID-|SYNC-HAZARD|Validation (Error|Warning)' "$log"; then
    echo "validate: the layer had messages, see $log" >&2
    exit 1
fi
echo "validate: no message"
