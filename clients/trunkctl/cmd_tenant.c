/* tenant create, list and delete, token issue, token revoke: the admin's register of who may ask.
 */
#include <stdio.h>
#include <stdlib.h>

#include "ctl.h"
#include "term.h"
#include "trunkd/v1/admin.pb-c.h"

/* Prints a fresh token the one time that it is known. */
static void print_token(const tk__ctl *ctl, const char *whose, const char *token, const char *id)
{
    if (ctl->quiet) {
        tk__put(stdout, token);
        putchar('\n');
        return;
    }
    fputs(whose, stdout);
    fputs("token     ", stdout);
    tk__put(stdout, token);
    fputs("   (shown this once: keep it)\ntoken id  ", stdout);
    tk__put(stdout, id);
    fputs("   (to revoke it)\n", stdout);
}

int tk__cmd_tenant_create(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    Trunkd__V1__CreateTenantRequest request;
    trunkd__v1__create_tenant_request__init(&request);
    request.name = rest.items[0];
    Trunkd__V1__CreateTenantResponse *answer =
        tk__call(ctl, "/trunkd.v1.Admin/CreateTenant", &request.base,
                 &trunkd__v1__create_tenant_response__descriptor);
    tk__list_free(&rest);
    if (!answer) return TK__FAILED;
    if (ctl->json) {
        tk__print_json(&answer->base);
    } else {
        char *name = tk__clean(answer->name), *whose = tk__format("tenant    %s\n", name);
        print_token(ctl, whose, answer->token, answer->token_id);
        free(name);
        free(whose);
    }
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

int tk__cmd_tenant_list(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 0, 0);
    if (code != TK__GO) return code;
    Trunkd__V1__Empty request;
    trunkd__v1__empty__init(&request);
    Trunkd__V1__ListTenantsResponse *answer =
        tk__call(ctl, "/trunkd.v1.Admin/ListTenants", &request.base,
                 &trunkd__v1__list_tenants_response__descriptor);
    if (!answer) return TK__FAILED;
    if (ctl->json) {
        tk__print_json(&answer->base);
    } else if (answer->n_tenants == 0) {
        puts("No tenant yet. Make one: trunkctl tenant create NAME");
    } else {
        tk__table table;
        tk__table_init(&table, "lrrrl");
        static const char *const titles[] = {"TENANT", "HEADS", "DATA SETS", "STORED", "SINCE"};
        for (size_t i = 0; i < 5; i++)
            tk__table_cell(&table, "%s", titles[i]);
        for (size_t i = 0; i < answer->n_tenants; i++) {
            const Trunkd__V1__Tenant *t = answer->tenants[i];
            char buf[64];
            tk__table_cell(&table, "%s", t->name);
            tk__table_cell(&table, "%llu", (unsigned long long)t->heads);
            tk__table_cell(&table, "%llu", (unsigned long long)t->data_sets);
            tk__table_cell(&table, "%s", tk__bytes(t->bytes, buf, sizeof(buf)));
            tk__table_cell(&table, "%s", tk__when(t->created_ms, buf, sizeof(buf)));
        }
        tk__table_print(&table, stdout, 0);
    }
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

int tk__cmd_tenant_delete(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    Trunkd__V1__DeleteTenantRequest request;
    trunkd__v1__delete_tenant_request__init(&request);
    request.name = rest.items[0];
    ProtobufCMessage *answer = tk__call(ctl, "/trunkd.v1.Admin/DeleteTenant", &request.base,
                                        &trunkd__v1__empty__descriptor);
    tk__list_free(&rest);
    if (!answer) return TK__FAILED;
    if (!ctl->quiet) puts("deleted");
    tk_client_free_message(answer);
    return TK__DONE;
}

int tk__cmd_token_issue(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    bool admin = false;
    const tk__opt opts[] = {{"admin", 0, TK__FLAG, &admin, NULL, "a token of the admin role"}};
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, opts, 1, argc, argv, &rest, 0, 1);
    if (code != TK__GO) return code;
    if (admin == (rest.n == 1)) {
        code = tk__usage(cmd, "token issue needs a tenant's name, or else --admin");
        tk__list_free(&rest);
        return code;
    }
    char nobody[] = "";
    Trunkd__V1__IssueTokenRequest request;
    trunkd__v1__issue_token_request__init(&request);
    request.tenant = admin ? nobody : rest.items[0];
    Trunkd__V1__IssueTokenResponse *answer =
        tk__call(ctl, "/trunkd.v1.Admin/IssueToken", &request.base,
                 &trunkd__v1__issue_token_response__descriptor);
    tk__list_free(&rest);
    if (!answer) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&answer->base);
    else
        print_token(ctl, "", answer->token, answer->token_id);
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

int tk__cmd_token_revoke(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    Trunkd__V1__RevokeTokenRequest request;
    trunkd__v1__revoke_token_request__init(&request);
    request.token_id = rest.items[0];
    ProtobufCMessage *answer = tk__call(ctl, "/trunkd.v1.Admin/RevokeToken", &request.base,
                                        &trunkd__v1__empty__descriptor);
    if (answer && !ctl->quiet) puts("revoked");
    tk__list_free(&rest);
    tk_client_free_message(answer);
    return answer ? TK__DONE : TK__FAILED;
}
