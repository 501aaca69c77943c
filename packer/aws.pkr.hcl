# An image of Cosmian VM for AWS:   packer build -var os=ubuntu aws.pkr.hcl
# Credentials are those of the AWS command line: AWS_PROFILE, AWS_ACCESS_KEY_ID and so on, or ~/.aws.

variable "os" {
  type        = string
  default     = "ubuntu"
  description = "Operating system: ubuntu (24.04), rhel (9) or amazonlinux (2023)."
  validation {
    condition     = contains(["ubuntu", "rhel", "amazonlinux"], var.os)
    error_message = "The variable os must be ubuntu, rhel or amazonlinux."
  }
}

variable "tee" {
  type        = string
  default     = "sev"
  description = "Kind of confidential VM that the image is for: sev (AMD SEV-SNP)."
  validation {
    condition     = contains(["sev"], var.tee)
    error_message = "The variable tee must be sev: AWS has no Intel TDX."
  }
}

variable "region" {
  type        = string
  default     = "eu-west-1"
  description = "Where the image is built and kept: SEV-SNP is offered in eu-west-1 and us-east-2."
}

variable "instance_type" {
  type        = string
  default     = "m6a.xlarge"
  description = "Type of the machine that builds: m6a, c6a or r6a, those that do SEV-SNP."
  validation {
    condition     = contains(["m6a", "c6a", "r6a"], split(".", var.instance_type)[0])
    error_message = "The variable instance_type must be of m6a, c6a or r6a."
  }
}

variable "owners" {
  type        = list(string)
  default     = []
  description = "Fingerprints of who gives the machines orders (cosmian_vm owner show); none: whoever claims a machine first."
}

variable "admin_key" {
  type        = string
  default     = ""
  description = "Public SSH keys that may log in as root, one a line; without one nobody can log in."
  validation {
    condition     = var.admin_key == "" || contains(["ssh", "ecdsa", "sk"], split("-", var.admin_key)[0])
    error_message = "The variable admin_key must be public SSH keys: the content of a file .pub."
  }
}

locals {
  # Owner: Canonical, Red Hat, Amazon.
  owner = { ubuntu = "099720109477", rhel = "309956199498", amazonlinux = "137112412989" }
  image = {
    ubuntu      = "ubuntu/images/hvm-ssd*/ubuntu-noble-24.04-amd64-server-*"
    rhel        = "RHEL-9.*_HVM-*-x86_64-*-Hourly2-GP3"
    amazonlinux = "al2023-ami-2023.*-x86_64"
  }
  user = var.os == "ubuntu" ? "ubuntu" : "ec2-user"
  name = "cosmian-vm-${var.os}-${var.tee}"
}

# The machine that builds need not be confidential itself. SEV-SNP asks for an image that boots by UEFI, as these three do;
# the TPM is asked for by a flag that only registering the image anew can set: README.md has the command.
source "amazon-ebs" "vm" {
  region        = var.region
  instance_type = var.instance_type
  source_ami_filter {
    owners      = [local.owner[var.os]]
    most_recent = true
    filters     = { name = local.image[var.os], architecture = "x86_64", virtualization-type = "hvm", root-device-type = "ebs" }
  }
  ena_support     = true
  ssh_username    = local.user
  ami_name        = "${local.name}-${formatdate("YYYYMMDDhhmmss", timestamp())}"
  ami_description = "Cosmian VM: ${var.os}, ${var.tee}"
  tags            = { Name = local.name }
}

build {
  sources = ["source.amazon-ebs.vm"]

  provisioner "ansible" {
    playbook_file    = "${path.root}/../image/ansible/playbook.yml"
    user             = local.user
    use_proxy        = false
    ansible_env_vars = ["ANSIBLE_CONFIG=${path.root}/../image/ansible/ansible.cfg", "ANSIBLE_HOST_KEY_CHECKING=False"]
    extra_arguments  = ["--extra-vars", jsonencode({ cosmian_vm_cloud = "aws", cosmian_vm_admin_key = var.admin_key, cosmian_vm_owners = var.owners })]
  }

  provisioner "shell" {
    script          = "${path.root}/clean.sh"
    execute_command = "sudo sh '{{ .Path }}' ${local.user}"
    skip_clean      = true
  }
}
