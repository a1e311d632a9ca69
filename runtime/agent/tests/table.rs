//! What a guest is told to open: only the one documented spelling is taken.

use secrun_agent::table::{Group, Image, Secret, Verity, Volume, guest, modules, pod, salt};

const ROOT: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const SALT: &str = "565c";

fn verity(blocks: u64) -> Verity {
    Verity { blocks, root: ROOT.into(), salt: SALT.into() }
}

fn table(lines: &str) -> String {
    format!("secrun-guest 1\nhostname h\nuuid 01234567-89ab-cdef-0123-456789abcdef\nimage a app-0 2 {ROOT} {SALT}\n{lines}")
}

#[test]
fn the_line_of_the_salt() {
    assert_eq!(salt(&format!("{SALT}\n")), Ok(SALT.into()));
    let long = "00".repeat(257);
    for wrong in ["", "\n", SALT, "565c\n\n", "565C\n", "565\n", "-\n", "56 5c\n", &format!("{long}\n")] {
        assert!(salt(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn only_one_spelling_of_a_tree_is_taken() {
    let line = |words: &str| guest(&table("").replace(&format!("2 {ROOT} {SALT}"), words));
    assert_eq!(line(&format!("17 {ROOT} {SALT}")).unwrap().images[0].verity, verity(17));
    let upper = ROOT.to_uppercase();
    for wrong in [
        format!("17 {ROOT}"),
        format!("017 {ROOT} {SALT}"),
        format!("+17 {ROOT} {SALT}"),
        format!("1 {ROOT} {SALT}"),
        format!("4294967297 {ROOT} {SALT}"),
        format!("17 {upper} {SALT}"),
        format!("17 {ROOT}00 {SALT}"),
        format!("17 {ROOT} 565"),
        format!("17 {ROOT} "),
        format!("17 {ROOT} -"),
    ] {
        assert!(line(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn the_parameters_of_the_target_end_the_machine_on_corruption() {
    let said = verity(17).parameters("/dev/vda");
    assert_eq!(
        said,
        format!("1 /dev/vda /dev/vda 4096 4096 17 18 sha256 {ROOT} {SALT} 1 panic_on_corruption")
    );
}

#[test]
fn the_word_of_the_command_line() {
    assert_eq!(pod(&format!("quiet secrun.pod=9:{ROOT}\n"), SALT), Ok(verity(9)));
    for wrong in [
        "quiet".into(),
        "secrun.pod=".into(),
        format!("secrun.pod=9:{ROOT} secrun.pod=9:{ROOT}"),
        format!("secrun.pod=9:{ROOT}:0"),
        format!("secrun.pod=9 {ROOT}"),
        format!("xsecrun.pod=9:{ROOT}"),
    ] {
        assert!(pod(&wrong, SALT).is_err(), "{wrong:?}");
    }
}

#[test]
fn modules_come_in_order_with_their_groups() {
    let lines = [
        "hash /secrun/modules.d/sha256_ssse3.ko\n",
        "base /secrun/modules.d/virtio.ko\n",
        "mmio /secrun/modules.d/virtio_mmio.ko\n",
    ];
    let found = modules(&lines.concat()).unwrap();
    let paths: Vec<_> = found.iter().map(|module| (module.group, module.path.as_str())).collect();
    assert_eq!(
        paths,
        [
            (Group::Hash, "/secrun/modules.d/sha256_ssse3.ko"),
            (Group::Base, "/secrun/modules.d/virtio.ko"),
            (Group::Mmio, "/secrun/modules.d/virtio_mmio.ko"),
        ]
    );
    for wrong in [
        "base",
        "base virtio.ko",
        "other /secrun/modules.d/a.ko",
        "base /secrun/modules.d/../a",
        "base /secrun/modules.d/",
        "base /secrun/modules.d/a/b.ko",
        "base /secrun/modules.d/a.ko b",
        "",
    ] {
        assert!(modules(&format!("{wrong}\n")).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_whole_guest() {
    let found = guest(&table("volume a 0 tag ro .\nvolume a 1 tag rw file.txt\nscratch\ntpm\nnetworks 2\nsecret a 0 5 6 440\nsecret b.c-d 1 0 65535 0\n")).unwrap();
    assert_eq!((found.hostname.as_str(), found.scratch, found.tpm, found.networks), ("h", true, true, 2));
    assert_eq!(found.images, [Image { app: "a".into(), serial: "app-0".into(), verity: verity(2) }]);
    let volume = |index, read_only, file: Option<&str>| Volume {
        app: "a".into(),
        index,
        tag: "tag".into(),
        read_only,
        file: file.map(Into::into),
    };
    assert_eq!(found.volumes, [volume(0, true, None), volume(1, false, Some("file.txt"))]);
    let secret = |app: &str, index, owner, mode| Secret { app: app.into(), index, owner, mode };
    assert_eq!(found.secrets, [secret("a", 0, (5, 6), 0o440), secret("b.c-d", 1, (0, 65_535), 0)]);
    assert!(found.needs(Group::Ext4) && found.needs(Group::Virtiofs) && found.needs(Group::Tpm));
    assert!(found.needs(Group::Net));
    let bare = guest(&table("")).unwrap();
    assert!(!bare.needs(Group::Ext4) && !bare.needs(Group::Net));
}

#[test]
fn a_guest_that_is_not_understood_is_refused() {
    let image = format!("image b app-0 2 {ROOT} {SALT}\n");
    for wrong in [
        "mark",
        "hostname other",
        "uuid 01234567-89ab-cdef-0123-456789abcdef",
        "scratch\nscratch",
        "networks 0",
        "networks 17",
        "secret a 0 0 0 444\nsecret a 0 0 0 444",
        "secret a 0 65536 0 444",
        "secret a 0 0 0 1777",
        "secret a 0 0 0 0444",
        "secret a 0 0 0",
        "secret ../a 0 0 0 444",
        "secret a 00 0 0 444",
        "networks 1\nnetworks 1",
        "volume a 0 tag ro .\nvolume a 0 tag rw .",
        "volume a 0 tag ro ..",
        "volume a 0 tag ro /etc",
        "volume a 0 tag ro a/b",
        "volume a 0 tag ro",
        "volume a 65536 tag ro .",
        "volume a 0 tag rx .",
        "volume ../a 0 tag ro .",
        "volume a 0 a-tag-that-is-longer-than-36-characters ro .",
        "image /etc app-1 2 0 0",
        &image,
        "scratch ",
        " scratch",
        "",
        "scratch\0",
    ] {
        let error = guest(&table(&format!("{wrong}\n"))).expect_err(wrong);
        assert!(error.starts_with("/pod/guest, line "), "{error}");
    }
    for whole in
        ["", "\n", "secrun-guest 2\n", "secrun-guest 1\n", &table("scratch"), "secrun-guest 1\nhostname h\n"]
    {
        assert!(guest(whole).is_err(), "{whole:?}");
    }
}
