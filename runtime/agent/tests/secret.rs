//! What a guest keeps of the secrets that the host tells.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use secrun_agent::secret::keep;
use secrun_agent::table::Secret;

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("secrun-secrets-{name}-{}", std::process::id()))
}

fn wanted() -> Vec<Secret> {
    // Owners that this process may give away whoever it is.
    let made = fs::metadata("/proc/self").unwrap();
    let secret = |app: &str, mode| Secret { app: app.into(), index: 0, owner: (made.uid(), made.gid()), mode };
    vec![secret("a", 0o400), secret("b", 0o444)]
}

#[test]
fn each_has_its_bytes_and_its_mode() {
    let top = folder("whole");
    keep(&top, &wanted(), BTreeMap::from([(0, b"one".to_vec()), (1, b"\0\xfftwo".to_vec())])).unwrap();
    assert_eq!(fs::read(top.join("b-0")).unwrap(), b"\0\xfftwo");
    let mode = |name| fs::metadata(top.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("a-0"), mode("b-0"), mode("")), (0o400, 0o444, 0o700));
    fs::remove_dir_all(top).unwrap();
}

#[test]
fn what_the_table_does_not_have_is_refused_and_nothing_is_written() {
    let top = folder("refused");
    let bytes = |numbers: &[u16]| numbers.iter().map(|number| (*number, b"x".to_vec())).collect();
    let empty = BTreeMap::from([(0, b"x".to_vec()), (1, Vec::new())]);
    for told in [bytes(&[]), bytes(&[0]), bytes(&[1]), bytes(&[0, 2]), bytes(&[0, 1, 2]), empty] {
        assert!(keep(&top, &wanted(), told).unwrap_err().contains("the pod has 2"));
    }
    assert!(keep(&top, &[], bytes(&[0])).is_err());
    keep(&top, &[], bytes(&[])).unwrap();
    assert!(!top.exists());
}
