//! Which pod a process belongs to, by its cgroup. Pure.

use std::collections::BTreeSet;

use durward_proto::PodUid;

/// The pod that a process's `/proc/PID/cgroup` names; none if it names none, or if its lines disagree.
///
/// Each line is `id:controllers:path`, one for each hierarchy of v1, one in all for v2. The outermost folder
/// that is named by a pod is the kubelet's own: a process in a pod can only make folders below it.
pub(crate) fn pod_of(text: &str) -> Option<PodUid> {
    let path = |line: &str| line.splitn(3, ':').nth(2).and_then(pod_of_path);
    let pods: BTreeSet<PodUid> = text.lines().filter_map(path).collect();
    match (pods.len(), pods.into_iter().next()) {
        (1, pod) => pod,
        _ => None,
    }
}

fn pod_of_path(path: &str) -> Option<PodUid> {
    path.split('/').find_map(|folder| {
        // cgroupfs: pod<UID>; systemd: kubepods-burstable-pod<UID with underscores>.slice
        let uid = match folder.strip_suffix(".slice") {
            Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
            None => folder.strip_prefix("pod")?.to_owned(),
        };
        is_uid(&uid).then(|| uid.as_str().into())
    })
}

/// A UUID, or, of a static pod, the 32 digits of its configuration's hash.
fn is_uid(text: &str) -> bool {
    let digits = text.bytes().filter(|byte| *byte != b'-');
    digits.clone().count() == 32
        && digits.clone().all(|byte| byte.is_ascii_hexdigit())
        && matches!(text.len(), 32 | 36)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    #[test]
    fn a_process_is_of_the_outermost_pod_of_its_path() {
        let slices = "kubepods.slice/kubepods-burstable.slice";
        let underscores = UID.replace('-', "_");
        for path in [
            format!("0::/kubepods/burstable/pod{UID}/c1"),
            format!("0::/kubepods/pod{UID}/c1/podffffffff-ffff-ffff-ffff-ffffffffffff"),
            format!("0::/bed-n1/kubepods/besteffort/pod{UID}"),
            format!("0::/{slices}/kubepods-burstable-pod{underscores}.slice/cri-containerd-c1.scope"),
            format!("0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{underscores}.slice/x"),
            // As seen from a cgroup namespace of its own.
            format!("0::/../../pod{UID}/c1"),
            format!("2:memory:/kubepods/pod{UID}/c1\n1:name=systemd:/kubepods/pod{UID}/c1\n0::/\n"),
        ] {
            assert_eq!(pod_of(&path), Some(UID.into()), "{path}");
        }
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(pod_of(&format!("0::/kubepods/pod{hash}/c")), Some(hash.into()));
    }

    #[test]
    fn other_processes_are_of_no_pod() {
        for path in [
            "0::/",
            "0::/system.slice/sshd.service",
            "0::/machine.slice/libpod_pod_0123.slice/x",
            "0::/podlike/pod1",
            "",
        ] {
            assert_eq!(pod_of(path), None, "{path}");
        }
        let other = UID.replace('0', "1");
        assert_eq!(pod_of(&format!("2:cpu:/kubepods/pod{UID}/c\n1:x:/kubepods/pod{other}/c")), None);
    }
}
