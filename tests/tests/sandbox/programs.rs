//! Programs as they are installed, on small inputs: compilers, runtimes, databases, version control, terminals. Standard
//! output and status equal the host's. What is not installed is left out, and says so.

use runsc_tests::{
    on_sandboxes,
    platform::{Platform, Program},
};

/// Runs `script` in an empty directory where all of `programs` are installed.
fn compare(platform: &Platform, programs: &[&str], script: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if let Some(missing) = programs.iter().find(|name| !installed(name)) {
        return eprintln!("not run: {missing} is not installed");
    }
    let text = format!("set -e; d=$(mktemp -d); trap 'cd /; rm -rf $d' EXIT; cd $d; export HOME=$d\n{script}");
    platform.same_as_host(&Program::shell("bash", &text).env("LC_ALL", "C").limit(120));
}

const MAKE: &str = r#"
for i in $(seq 12); do echo "int f$i(int x) { return x * $i; }" > f$i.c; done
{ for i in $(seq 12); do echo "int f$i(int);"; done; echo '#include <stdio.h>'
  echo 'int main(void) { int s = 0;'; for i in $(seq 12); do echo "s += f$i($i);"; done; echo 'printf("%d\n", s); return 0; }'; } > main.c
printf 'OBJS = $(sort $(patsubst %%.c,%%.o,$(wildcard *.c)))\nprog: $(OBJS)\n\t@$(CC) -o $@ $^\n%%.o: %%.c\n\t@$(CC) -O1 -c -o $@ $<\n' > Makefile
make -s -j4; ./prog; touch f3.c; make -q && echo current || echo stale; make -s; make -q && echo current
"#;

const CXX: &str = r#"
cat > a.cc <<'END'
#include <atomic>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <thread>
#include <vector>
int main() {
    std::atomic<long> sum{0};
    std::vector<std::thread> all;
    for (int t = 0; t < 6; t++) all.emplace_back([&, t] { std::map<int, int> m; for (int i = 0; i < 2000; i++) m[i * 7 % 977] = i + t; for (auto& p : m) sum += p.second; });
    for (auto& t : all) t.join();
    try { throw std::runtime_error("caught"); } catch (const std::exception& e) { printf("%s %ld\n", e.what(), sum.load()); }
}
END
g++ -O1 -pthread a.cc -o a; ./a
"#;

const CMAKE: &str = r#"
printf 'cmake_minimum_required(VERSION 3.10)\nproject(x C)\nadd_library(y STATIC y.c)\nadd_executable(x x.c)\ntarget_link_libraries(x y)\nenable_testing()\nadd_test(t x)\n' > CMakeLists.txt
echo 'int y(void); int main(void) { return y(); }' > x.c; echo 'int y(void) { return 0; }' > y.c
cmake -G Ninja -B b . > log; tail -n 2 log | sed "s,$d,,"; ninja -C b | tail -n 1; ninja -C b | tail -n 1; cd b; ctest | grep -c Passed
"#;

const GIT: &str = r#"
export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z' GIT_CONFIG_NOSYSTEM=1
git config --global user.email a@b; git config --global user.name n; git config --global init.defaultBranch main
git init -q r; cd r; for i in $(seq 60); do seq $i > f$i; done; git add .; git commit -qm one; echo more >> f1; git commit -qam two
git log --format=%H; git branch side HEAD~1; git checkout -q side; echo new > g; git add g; git commit -qm three; git merge -q main -m merged; git log --format=%T -1
git gc -q; git fsck 2>/dev/null; git clone -q . ../r2; cd ../r2; git status --short; git rev-parse HEAD; ls | wc -l; git diff --stat HEAD~1 | tail -n 1
"#;

const SQLITE: &str = r#"
sqlite3 x.db "pragma journal_mode=wal; create table t(a integer primary key, b text); with recursive c(i) as (select 1 union all select i + 1 from c where i < 100000) insert into t select i, 'row' || i from c; select count(*), sum(a) from t; pragma integrity_check;"
for i in 1 2 3; do sqlite3 -cmd '.timeout 20000' x.db "insert into t(b) values('$i')" & done; wait
sqlite3 x.db 'select count(*) from t; pragma journal_mode=delete; create index i on t(b); select a from t where b = "row777"; vacuum; pragma integrity_check'; ls
"#;

const ARCHIVES: &str = r#"
seq 200000 > big; umask 22; mkdir t; cp big t; ln -s big t/link; tar cf a.tar --sort=name --mtime=@0 --owner=0 --group=0 t; gzip -kn a.tar; xz -k -1 -T2 a.tar; zstd -qk a.tar
for f in gz xz zst; do tar xOf a.tar.$f t/big | sha256sum; done; mkdir u; tar xJf a.tar.xz -C u; diff -r t u/t && echo same; sha256sum a.tar.gz
"#;

const RSYNC: &str = r#"
mkdir -p s/d; seq 5000 > s/a; seq 100 > s/d/b; ln -s a s/l; rsync -a s/ t/; diff -r s t && echo same; echo more >> s/d/b; rsync -a --checksum s/ t/; diff -r s t && echo same; rm s/a; rsync -a --delete s/ t/; ls t
"#;

const CARGO: &str = r#"
export CARGO_HOME=$d/cargo RUSTUP_HOME=${RUSTUP_HOME:-/root/.rustup} RUSTUP_TOOLCHAIN=stable
mkdir -p hello/src; printf '[package]\nname = "hello"\nversion = "0.1.0"\nedition = "2021"\n' > hello/Cargo.toml
echo 'fn main() { let n: u64 = std::thread::spawn(|| (1..=100).sum()).join().unwrap(); println!("{n}"); }' > hello/src/main.rs
cd hello; cargo build -q --offline; ./target/debug/hello
"#;

const JAVA: &str = r#"
cat > A.java <<'END'
import java.nio.file.*;
import java.util.*;
public class A {
    public static void main(String[] args) throws Exception {
        long[] sums = new long[8];
        Thread[] all = new Thread[8];
        for (int t = 0; t < 8; t++) { final int n = t; all[t] = new Thread(() -> { List<byte[]> keep = new ArrayList<>(); for (int i = 0; i < 20000; i++) { byte[] b = new byte[200]; sums[n] += b.length; if (i % 100 == 0) keep.add(b); } }); all[t].start(); }
        for (Thread t : all) t.join();
        System.gc();
        Files.writeString(Path.of("out"), "written");
        Process p = new ProcessBuilder("cat", "out").start();
        System.out.println(Arrays.stream(sums).sum() + " " + new String(p.getInputStream().readAllBytes()) + " " + p.waitFor());
    }
}
END
javac A.java; java -XX:+UseG1GC -Xmx200m A
"#;

const NODE: &str = r#"
cat > a.js <<'END'
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const { execFileSync, spawn } = require('child_process');
const fs = require('fs');
if (isMainThread) {
    Promise.all([1, 2, 3].map(n => new Promise((done, failed) => { const w = new Worker(__filename, { workerData: n }); w.on('message', done); w.on('error', failed); }))).then(async all => {
        console.log(all.join(), execFileSync('echo', ['child']).toString().trim());
        await fs.promises.writeFile('f', 'text');
        console.log((await fs.promises.readFile('f')).toString());
        const cat = spawn('cat'); let got = ''; cat.stdout.on('data', d => got += d); cat.on('close', code => console.log(got.length, code)); cat.stdin.end('x'.repeat(100000));
    });
} else { let s = 0; for (let i = 0; i < 1e5; i++) s += i * workerData; parentPort.postMessage(s); }
END
node a.js
"#;

const GO: &str = r#"
podman --version; runc --version | head -n 1; containerd --version
"#;

const PERL: &str = r#"
perl -e 'use IPC::SysV qw(IPC_PRIVATE IPC_RMID S_IRUSR S_IWUSR); my $id = shmget(IPC_PRIVATE, 100, S_IRUSR | S_IWUSR); defined $id or die; shmwrite($id, "shared", 0, 6); if (my $p = fork) { waitpid $p, 0 } else { shmread($id, my $b, 0, 6); print "$b\n"; exit } shmctl($id, IPC_RMID, 0); print join(",", map { $_ ** 2 } 1 .. 9), "\n"; open(my $f, "-|", "echo piped"); print <$f>'
"#;

const DPKG: &str = r#"
mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates p/DEBIAN p/usr/share; touch root/var/lib/dpkg/status root/var/lib/dpkg/available; echo content > p/usr/share/hi
printf 'Package: hi\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: d\n' > p/DEBIAN/control
dpkg-deb -b p hi.deb; dpkg --root=$d/root --force-not-root --force-script-chrootless --log=$d/log -i hi.deb > out 2>&1 || cat out; cat root/usr/share/hi; dpkg --root=$d/root -s hi | head -n 2
"#;

const POSTGRES: &str = r#"
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1); if [ -z "$bin" ] || [ $(id -u) != 0 ]; then exit 0; fi
chmod 755 $d; mkdir pg; chown nobody pg; as() { setpriv --reuid=nobody --clear-groups "$@"; }
as $bin/initdb -D $d/pg -E UTF8 --no-locale -A trust > out 2>&1 || cat out
printf 'create table t as select i, i * i as s from generate_series(1, 5000) i;\nselect sum(s) from t;\n' | as $bin/postgres --single -D $d/pg postgres 2>/dev/null | grep sum
"#;

const TERMINALS: &str = r#"
export TERM=xterm; printf 'hello\nworld\n' > v
script -qec "vim -u NONE -c '%s/hello/bye/' -c 'normal Gofoot' -c wq v" /dev/null > /dev/null < /dev/null; cat v
script -qec 'stty -a | grep -c icanon; tty | cut -c1-9; echo done' /dev/null < /dev/null | tr -d '\r'
"#;

const TMUX: &str = r#"
export TMUX_TMPDIR=$d TERM=xterm; t="tmux -f /dev/null"; $t new-session -d -s x -x 80 -y 10 'echo hello; read y; echo "got $y"; read z'
for i in $(seq 100); do $t capture-pane -p -t x | grep -q hello && break; sleep 0.1; done
$t send-keys -t x word Enter; for i in $(seq 100); do $t capture-pane -p -t x | grep -q 'got word' && break; sleep 0.1; done
$t capture-pane -p -t x | grep got; $t display -p -t x '#{pane_width}'; $t kill-server
"#;

const EXPECT: &str = r#"
cat > e <<'END'
log_user 0
spawn bash --norc --noprofile
send "PS1='>'\r"
expect "\n>"
send "echo a\$((1 + 1))b\r"
expect "a2b"
send "sleep 50\r"
sleep 0.5
send "\003"
send "echo \$?\r"
expect "130" { puts interrupted }
send "exit\r"
expect eof
puts [lindex [wait] 3]
END
expect e
"#;

const PYTHON: &str = r#"
python3 - <<'END'
import concurrent.futures as c, multiprocessing as m, os, select, signal, sqlite3, subprocess, tempfile, threading
with c.ThreadPoolExecutor(8) as pool: print(sum(pool.map(lambda n: n * n, range(200))))
with m.Pool(2) as pool: print(pool.map(abs, [-3, -2, -1]))
q = m.Queue(); p = m.Process(target=q.put, args=("queued",)); p.start(); print(q.get()); p.join()
print(subprocess.run(["sh", "-c", "cat; exit 7"], input=b"in", capture_output=True))
with tempfile.TemporaryDirectory() as d: print(os.listdir(d), oct(os.stat(d).st_mode))
db = sqlite3.connect(":memory:"); print(db.execute("select sum(value) from json_each('[1,2,3]')").fetchone())
b = threading.Barrier(4); seen = []
def meet(n): b.wait(); seen.append(n)
all = [threading.Thread(target=meet, args=(n,)) for n in range(4)]; [t.start() for t in all]; [t.join() for t in all]; print(sorted(seen))
signal.signal(signal.SIGALRM, lambda *a: print("alarm")); signal.setitimer(signal.ITIMER_REAL, 0.05); signal.pause()
r, w = os.pipe(); os.write(w, b"x"); print(select.select([r], [], [], 1)[0] == [r], os.sched_getaffinity(0) != set())
END
"#;

const PROCPS: &str = r#"
sleep 60 & p=$!; ps -o comm=,ppid= -p $p | sed "s/$$/parent/" | tr -s ' '; pgrep -P $$ sleep | wc -l; tr '\0' ' ' < /proc/$p/cmdline; echo; kill $p; wait $p || echo $?
top -b -n 1 | grep -c COMMAND; free | head -n 2 | tail -n 1 | cut -d: -f1; lscpu | grep -c '^CPU(s)'; nproc; cat /sys/devices/system/cpu/online; od -An -tx8 /proc/self/auxv | tail -n 1
"#;

const STRESS: &str = r#"
for s in cpu vm fork futex pipe poll sem shm mmap mremap signal timer fifo dentry dir rename fallocate; do
  stress-ng --temp-path $d --verify --$s 1 --$s-ops 20 -t 1 > log 2>&1 && echo $s || { echo $s failed; cat log; }
done
"#;

on_sandboxes! {
    kvm ignored: "minutes in the emulated machine";
    archives = |p: &Platform| compare(p, &["tar", "gzip", "xz", "zstd"], ARCHIVES);
    cargo_build = |p: &Platform| compare(p, &["cargo", "cc"], CARGO);
    cmake_and_ninja = |p: &Platform| compare(p, &["cmake", "ninja", "cc"], CMAKE);
    cxx = |p: &Platform| compare(p, &["g++"], CXX);
    dpkg = |p: &Platform| compare(p, &["dpkg", "dpkg-deb"], DPKG);
    expect = |p: &Platform| compare(p, &["expect"], EXPECT);
    git = |p: &Platform| compare(p, &["git"], GIT);
    go_programs = |p: &Platform| compare(p, &["podman", "runc", "containerd"], GO);
    java = |p: &Platform| compare(p, &["javac", "java"], JAVA);
    make = |p: &Platform| compare(p, &["make", "cc"], MAKE);
    node = |p: &Platform| compare(p, &["node"], NODE);
    perl = |p: &Platform| compare(p, &["perl"], PERL);
    postgres = |p: &Platform| compare(p, &["setpriv"], POSTGRES);
    procps = |p: &Platform| compare(p, &["ps", "top", "pgrep", "free", "lscpu"], PROCPS);
    python = |p: &Platform| compare(p, &["python3"], PYTHON);
    rsync = |p: &Platform| compare(p, &["rsync"], RSYNC);
    sqlite = |p: &Platform| compare(p, &["sqlite3"], SQLITE);
    stress = |p: &Platform| compare(p, &["stress-ng"], STRESS);
    terminals = |p: &Platform| compare(p, &["script", "vim"], TERMINALS);
    tmux = |p: &Platform| compare(p, &["tmux"], TMUX);
}
