%% run_pytest.erl [PYTEST_ARGUMENT...]: runs pytest inside the BEAM, in a node with py_reactor started, and exits with what
%% pytest answers. Needs ERL_LIBS with py_reactor in it, and .venv made by script/bootstrap.
-module(run_pytest).
-mode(compile).
-export([main/1]).

-define(TIMEOUT_MS, 20 * 60 * 1000).

main(Arguments) ->
    {ok, _} = application:ensure_all_started(py_reactor),
    [SitePackages] = filelib:wildcard(filename:absname(".venv/lib/python3*/site-packages")),
    ok = py:add_path(unicode:characters_to_binary(SitePackages)),
    %% For test_functions.py.
    ok = py:register_function(same, fun(Value) -> Value end),
    ok = py:register_function(fail, fun(Kind, Reason) -> erlang:raise(binary_to_atom(Kind), Reason, []) end),
    ok = py:register_function(sleep, {timer, sleep}),
    %% ExitCode is no plain integer, and what Python still holds in its buffers is lost when the node halts.
    ok = py:exec(<<"
        def run_pytest(arguments):
            import sys

            import pytest

            code = int(pytest.main(arguments))
            sys.stdout.flush()
            return code
    ">>),
    Plugin = ["-p", "erlang.reactor.pytest_plugin"],
    Binaries = [unicode:characters_to_binary(A) || A <- Plugin ++ ["test/python", "examples" | Arguments]],
    case py:call('__main__', run_pytest, [Binaries], #{}, ?TIMEOUT_MS) of
        {ok, Code} ->
            halt(Code);
        {error, Reason} ->
            io:format(standard_error, "pytest did not finish: ~p~n", [Reason]),
            halt(1)
    end.
