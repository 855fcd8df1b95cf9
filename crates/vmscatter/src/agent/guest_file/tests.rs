use proptest::prelude::*;

use super::*;

const GOOD: &str = "name = 'vm1'\nqmp = '{run_dir}/{name}.qmp'\ncommand = ['/usr/bin/qemu', '-m', '256', '-drive', \
     'file={disks}/{name}.img', '-blockdev', '{{\"driver\":\"null-co\"}}']\n";

fn values() -> Values {
    Values {
        run_dir: "/run/v".into(),
        values: BTreeMap::from([
            ("disks".to_owned(), "/srv".to_owned()),
            ("opt".to_owned(), "-S".to_owned()),
        ]),
        programs: vec!["/usr/bin/qemu".into()],
    }
}

#[test]
fn expands_with_a_hosts_values() {
    let guest = GuestFile::parse(GOOD, "vm1.toml").unwrap().expand(&values()).unwrap();
    assert_eq!(guest.name, "vm1");
    assert_eq!(guest.qmp, Path::new("/run/v/vm1.qmp"));
    assert_eq!(guest.program, Path::new("/usr/bin/qemu"));
    assert_eq!(
        guest.args,
        ["-m", "256", "-drive", "file=/srv/vm1.img", "-blockdev", "{\"driver\":\"null-co\"}"]
    );
}

#[test]
fn each_error_of_form_is_one_line_with_file_and_key() {
    let cases: &[(&str, &str, &str)] = &[
        ("name = 'vm1'", "", "missing field `name`"),
        ("name = 'vm1'", "name = '../vm1'", "name: "),
        ("name = 'vm1'", "name = 'vm1'\nuuid = '12'", "uuid: "),
        ("name = 'vm1'", "name = 'vm1'\ncolour = 1", "colour"),
        ("{name}.qmp", "{name.qmp", "qmp: "),
        ("{name}.qmp", "name}.qmp", "qmp: "),
        ("{{\"driver\"", "{\"driver\"", "command[6]: "),
        ("'256'", "'-incoming'", "command[2]: -incoming must not be given"),
        ("'256'", "'--S'", "command[2]: --S must not be given"),
        ("'256'", "'-daemonize'", "command[2]: "),
        ("'256'", "\"a\\u0000b\"", "command[2]: has a NUL byte"),
        ("'256'", "256", "command"),
    ];
    for (from, to, expected) in cases {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD);
        let line = GuestFile::parse(&text, "vm1.toml").unwrap_err().to_string();
        assert!(line.starts_with("vm1.toml") && line.contains(expected), "{to}: {line}");
        assert!(!line.contains('\n'), "{line}");
    }
    let line = GuestFile::parse("name = 'a'\nqmp = '/a'\ncommand = []\n", "x").unwrap_err().to_string();
    assert!(line.contains("command: "), "{line}");
}

#[test]
fn each_error_of_a_host_is_one_line_with_file_and_key() {
    let cases: &[(&str, &str, &str)] = &[
        ("{disks}", "{discs}", "command[4]: placeholder '{discs}'"),
        ("/usr/bin/qemu'", "/usr/bin/sh'", "command[0]: program '/usr/bin/sh' is not in"),
        ("/usr/bin/qemu'", "/usr/bin/../bin/qemu'", "command[0]: "),
        ("/usr/bin/qemu'", "qemu'", "command[0]: "),
        ("'256'", "'{opt}'", "command[2]: -S must not be given"),
        ("{run_dir}/{name}.qmp", "{name}.qmp", "qmp: "),
    ];
    for (from, to, expected) in cases {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD);
        let line = GuestFile::parse(&text, "vm1.toml").unwrap().expand(&values()).unwrap_err().to_string();
        assert!(line.starts_with("vm1.toml: ") && line.contains(expected), "{to}: {line}");
    }
}

#[test]
fn uuids() {
    let text = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    assert_eq!(format_uuid(&parse_uuid(text).unwrap()), text);
    assert_eq!(parse_uuid(&text.replace('-', "")), parse_uuid(text));
    for bad in
        ["", "6ba7b810", "6ba7b8109-dad-11d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430cg"]
    {
        assert_eq!(parse_uuid(bad), None, "{bad}");
    }
    assert_eq!(parse_uuid("ä6ba7b810-9dad-11d1-80b4-00c04fd430"), None);
}

proptest! {
    #[test]
    fn escaped_text_comes_back(text in "[a-z{}/ä]{0,40}") {
        let escaped = text.replace('{', "{{").replace('}', "}}");
        prop_assert_eq!(Template::parse(&escaped).unwrap().fill("n", &values()).unwrap(), text);
    }

    #[test]
    fn noise_is_an_error_or_a_guest(text in "\\PC{0,200}") {
        if let Ok(guest) = GuestFile::parse(&text, "x") {
            let _ = guest.expand(&values());
        }
        if let Ok(template) = Template::parse(&text) {
            let _ = template.fill("n", &values());
        }
    }
}
