//! What is pinned outlives its maker, and is taken over or refused.

#![allow(clippy::unwrap_used)]

mod lab;

use durward_bpf::{DataPath, Fate, LoadError, Options};
use lab::frame::*;
use lab::pod::*;
use libbpf_rs::{MapHandle, MapType};

#[test]
fn a_second_loader_finds_what_the_first_left() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        let f = v4();
        assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 5000, SYN), Fate::Passed);
        assert_eq!(pod.tcp(Ingress, f, f.rogue, PORT, 5000, SYN), Fate::Dropped);
        let many: Vec<_> = (0..200).map(|n| durward_bpf::Bound { start: n, act: allow(n + 1) }).collect();
        pod.path.set_row(50, 1, &many).unwrap();
        let (endpoints, before) = (pod.path.endpoints().unwrap(), pod.path.dump().unwrap());
        drop(pod);
        // Another size of the table of connections is a wish; the one that is there stays.
        let path =
            DataPath::open(&lab.bpffs, Options { connections: 1 << 17, ..Options::default() }).unwrap();
        assert_eq!(path.endpoints().unwrap(), endpoints);
        let after = path.dump().unwrap();
        assert_eq!(after.rows.len(), before.rows.len());
        assert_eq!((after.connections.len(), after.denials), (1, before.denials));
        assert_eq!(after.endpoints[0].counters, before.endpoints[0].counters);
        assert_eq!(path.row(50, 1).unwrap(), Some(many));
    });
}

#[test]
fn a_map_of_another_shape_is_refused_by_its_path() {
    lab::run(|lab| {
        let folder = lab.bpffs.join("durward/v1");
        std::fs::create_dir_all(&folder).unwrap();
        let options = defaults();
        let mut other = MapHandle::create(MapType::Hash, Some("row"), 8, 16, 10, &options).unwrap();
        other.pin(folder.join("row")).unwrap();
        let refused = DataPath::open(&lab.bpffs, Options::default()).err();
        let Some(LoadError::Shape { path, found, wanted }) = refused else {
            panic!("not refused: {refused:?}")
        };
        assert_eq!(path, folder.join("row"));
        assert_eq!((found.2, wanted.2), (16, 144));
    });
}

fn defaults() -> libbpf_sys::bpf_map_create_opts {
    let sz = size_of::<libbpf_sys::bpf_map_create_opts>() as u64;
    libbpf_sys::bpf_map_create_opts { sz, ..Default::default() }
}
