import subprocess, time, os
def sh(c):
    r=subprocess.run(c,shell=True,capture_output=True,text=True); print("$",c); print(r.stdout+r.stderr, flush=True)
sh("systemctl enable --now sysfsd.socket sysfsd.service; systemctl is-active sysfsd")
time.sleep(3)
for i in range(3):
    sh("systemctl show sysfsd -p NFileDescriptorStore,MainPID; systemd-analyze fdstore sysfsd.service")
    sh("kill -KILL $(systemctl show -p MainPID --value sysfsd); sleep 25; systemctl is-active sysfsd; sysfsd stats | grep life")
sh("systemctl restart sysfsd; systemctl show sysfsd -p NFileDescriptorStore,MainPID; sysfsd stats | grep life")
sh("journalctl -b -u sysfsd -u sysfsd-fallback --no-pager | tail -80")
sh("systemd-analyze security sysfsd.service --no-pager | tail -3")
sh("mount | grep sysfsd")
